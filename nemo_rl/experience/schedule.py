"""Schedule: which batch may be started with which weights, and when they may change.

Pure bookkeeping, without threads, tensors or clocks: ``ahead.py`` obeys it while
training, and the simulation of ``benchmarks/async_vs_sync.py`` obeys the same code.

Batch t (from 0) holds the prompts of training step t + 1. The weights have version v
after v updates, so batch t is trained on at version t: a token that version u has
sampled is then t - u updates old, its staleness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_rl.utils.exceptions import TrainingError


@dataclass(frozen=True, kw_only=True)
class AheadOptions:
    """How far, and in which order, generation runs ahead of training.

    Attributes:
        max_staleness: updates that may lie between a token and its training step (S).
        in_flight: weights change under running responses; else they wait for them.
        deterministic: batch t is sampled entirely with version max(0, t - S).
        over_sampling: prompts under way per prompt of a step (f); above 1 a step takes
            the groups that end first.
        sort_by_length: responses that are expected to be longest start first.
    """

    max_staleness: int = 1
    in_flight: bool = False
    deterministic: bool = False
    over_sampling: float = 1.0
    sort_by_length: bool = True

    def under_way(self, prompts: int) -> int:
        """Prompts that are sampled at once where a step takes so many."""
        return round(self.over_sampling * prompts)

    @property
    def one_at_a_time(self) -> bool:
        """Whether a batch starts only when the one before has ended.

        What over-sampling leaves unfinished goes on in the very next batch; a batch
        later it would nearly always be too old.
        """
        return self.over_sampling > 1


class Schedule:
    """Which batches run, and which version the weights have.

    Args:
        options: how far ahead.
        total: batches of the whole run.
        version: updates made so far; also the first batch that is not consumed.

    Example:
        >>> schedule = Schedule(AheadOptions(max_staleness=1), total=9)
        >>> [schedule.start(), schedule.start(), schedule.may_start()]
        [0, 1, False]
        >>> schedule.finish(0), schedule.consume(0), schedule.update()
        (None, None, None)
        >>> schedule.may_start()
        True
    """

    def __init__(self, options: AheadOptions, *, total: int, version: int = 0) -> None:
        self.options, self.total = options, total
        self.version = version
        self.next = version
        self.consumed = version
        self.running: set[int] = set()
        self.finished: set[int] = set()
        self.generating = 0
        self.update_wanted = False

    def oldest_allowed(self, number: int) -> int:
        """The oldest version of which a batch may hold tokens."""
        return max(0, number - self.options.max_staleness)

    def must_end(self, number: int, oldest: int | None) -> bool:
        """Whether a group with tokens of this version is too old for any later batch.

        Args:
            number: of the batch that is sampled.
            oldest: version of the group's oldest token; None: it has none.
        """
        return oldest is not None and oldest < self.oldest_allowed(number + 1)

    def all_started(self) -> bool:
        """Whether there is no further batch to start."""
        return self.next >= self.total

    def may_start(self) -> bool:
        """Whether the next batch may be started now."""
        oldest, number = self.oldest_allowed(self.next), self.next
        if self.options.one_at_a_time:
            if self.running:
                return False
            # What begins in this batch may end in the next, if staleness is allowed.
            oldest = min(self.oldest_allowed(number + 1), number)
        if self.options.deterministic and self.running:
            # What else an engine computes beside a response changes its rounding.
            return False
        return not self.all_started() and self.version >= oldest

    def start(self) -> int:
        """Start the next batch; its number."""
        if not self.may_start():
            raise TrainingError(
                f"batch {self.next} cannot be started at version {self.version} of the "
                f"weights with {sorted(self.running)} running"
            )
        number, self.next = self.next, self.next + 1
        self.running.add(number)
        return number

    def finish(self, number: int) -> None:
        """A batch is sampled and scored."""
        self.running.remove(number)
        self.finished.add(number)

    def end_before(self, number: int) -> None:
        """There are no prompts for this batch: the run ends before it."""
        self.running.discard(number)
        self.total = min(self.total, number)

    def consume(self, number: int) -> None:
        """Training takes a finished batch; they are taken in order."""
        if number != self.consumed or number not in self.finished:
            raise TrainingError(
                f"batch {number} cannot be trained on: next is {self.consumed}, "
                f"finished are {sorted(self.finished)}"
            )
        self.finished.remove(number)
        self.consumed = number + 1

    def may_generate(self) -> bool:
        """Whether a response may be started now.

        Not while an update waits for the running ones to end; a deterministic update
        waits for whole batches, which would then never end.
        """
        waits = not (self.options.in_flight or self.options.deterministic)
        return not (self.update_wanted and waits)

    def may_update(self) -> bool:
        """Whether the generator may get the next weights now."""
        if self.options.deterministic:
            last = min(self.version + self.options.max_staleness, self.total - 1)
            return self.next > last and not any(n <= last for n in self.running)
        return self.options.in_flight or self.generating == 0

    def update(self) -> None:
        """The generator has got the next weights."""
        self.version += 1
        self.update_wanted = False

    def check_versions(self, number: int, oldest: int, newest: int) -> None:
        """Make sure that training on a batch finds its tokens no older than allowed.

        Raises:
            TrainingError: they are older, or newer than the weights.
        """
        if not number - self.options.max_staleness <= oldest <= newest <= number:
            raise TrainingError(
                f"batch {number} has tokens of versions {oldest} to {newest}, allowed "
                f"are {self.oldest_allowed(number)} to {number}: the generator has "
                "told wrong versions of its weights"
            )


class FirstToEnd:
    """Which groups a step takes of those under way: those that must, then the first.

    A group that would be too old for the next step is waited for, so long responses
    are late by a few steps and not left out for being long.

    Args:
        must: groups that are waited for.
        wanted: groups that the step takes.
        total: groups under way, numbers 0 .. total - 1.

    Example:
        >>> first = FirstToEnd(must={0}, wanted=2, total=3)
        >>> [first.end(2), first.end(1), first.end(0)]
        [False, False, True]
        >>> first.chosen
        [0, 2]
    """

    def __init__(self, *, must: set[int], wanted: int, total: int) -> None:
        if total < wanted:
            raise TrainingError(f"{total} groups are under way, {wanted} are wanted")
        self.must = set(sorted(must)[:wanted])
        self.wanted, self.total = wanted, total
        self._ended: list[int] = []

    @property
    def full(self) -> bool:
        """Whether the step has its groups."""
        return len(self._ended) >= self.wanted and self.must <= set(self._ended)

    def end(self, group: int) -> bool:
        """A group has ended; whether the step now has all it takes."""
        self._ended.append(group)
        return self.full

    @property
    def chosen(self) -> list[int]:
        """The groups of the step, in ascending order."""
        others = [group for group in self._ended if group not in self.must]
        return sorted([*self.must, *others[: self.wanted - len(self.must)]])

    @property
    def left(self) -> list[int]:
        """The groups that go over to the next batch, in ascending order."""
        return sorted(set(range(self.total)) - set(self.chosen))


class LengthBook:
    """How long the responses to a prompt are expected to be.

    That is the mean of its earlier responses, or of all responses where it has none.

    Example:
        >>> book = LengthBook()
        >>> book.observe([7, 7, 8], [10, 30, 4])
        >>> book.expected(7), book.expected(8)
        (20.0, 4.0)
        >>> book.longest_first([8, 7, 9])
        [1, 2, 0]
    """

    def __init__(self, state: dict[int, list[float]] | None = None) -> None:
        self._seen = {int(key): list(value) for key, value in (state or {}).items()}

    def observe(self, prompts: Sequence[int], lengths: Sequence[float]) -> None:
        """Note the lengths of finished responses and whose they are."""
        for prompt, length in zip(prompts, lengths, strict=True):
            count, total = self._seen.get(prompt, (0, 0.0))
            self._seen[prompt] = [count + 1, total + length]

    def expected(self, prompt: int) -> float:
        """Tokens; 0 where nothing is known of any prompt."""
        if prompt in self._seen:
            count, total = self._seen[prompt]
            return total / count
        return self.overall()

    def overall(self) -> float:
        """Mean over everything noted."""
        count = sum(entry[0] for entry in self._seen.values())
        total = sum(entry[1] for entry in self._seen.values())
        return total / count if count else 0.0

    def longest_first(self, prompts: Sequence[int]) -> list[int]:
        """Positions of the prompts, the longest expected first; equal ones in order."""
        overall = self.overall()
        expected = [
            self.expected(prompt) if prompt in self._seen else overall
            for prompt in prompts
        ]
        return sorted(range(len(prompts)), key=lambda place: -expected[place])

    def state(self) -> dict[int, list[float]]:
        """What a new book starts from."""
        return {key: list(value) for key, value in self._seen.items()}
