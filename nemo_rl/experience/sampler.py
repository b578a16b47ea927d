"""BatchSampler: one batch that may be started becomes rollouts, whole or the first.

Runs in the threads of ``ahead.py``, takes and lets go of their locks, and decides
nothing about which batch runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.replay import Ready
from nemo_rl.experience.rollout import RolloutEngine, repeat_prompts
from nemo_rl.experience.schedule import AheadOptions, FirstToEnd, Schedule
from nemo_rl.experience.tail import Answered, Group, Limits, Tail, new_groups
from nemo_rl.experience.turnstile import InOrder, Turnstile, Versions


@dataclass(frozen=True)
class Size:
    """How much a training step takes."""

    prompts: int
    generations: int
    """Responses per prompt."""

    @property
    def rows(self) -> int:
        """Responses."""
        return self.prompts * self.generations


@dataclass(frozen=True)
class Begun:
    """A batch that may be sampled."""

    number: int
    prompts: BatchedDataDict
    """New ones; no columns where there are none."""
    data: dict[str, Any]
    """The data's state after they were drawn."""
    carried: list[Group]
    """What the batch before has left over."""


class BatchSampler:
    """Samples and scores batches.

    Args:
        engine: its policy lets go of the turn while it generates.
        turnstile: locks and schedule.
        options: order and over-sampling.
        size: of a step.
        stream: a ``GenerationStream``; only over-sampling needs one.
        limits: lengths in tokens.
        versions: the generator's numbers as updates made.
        longest_first: data set indices to the order in which they should start.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        turnstile: Turnstile,
        *,
        options: AheadOptions,
        size: Size,
        stream: Any,
        limits: Limits,
        versions: Versions,
        longest_first: Callable[[list[int]], list[int]],
    ) -> None:
        self._engine, self._turnstile, self._options = engine, turnstile, options
        self._size, self._stream, self._limits = size, stream, limits
        self._versions, self._longest_first = versions, longest_first

    def sample(self, begun: Begun) -> Ready:
        """Rollouts of a batch, with ``token_versions`` as updates made."""
        if self._options.one_at_a_time or begun.carried:
            return self._first_to_end(begun)
        batch = repeat_prompts(begun.prompts, self._size.generations)
        engine = self._engine
        if self._options.sort_by_length:
            order = self._longest_first(batch["idx"].tolist())
            engine = engine.with_policy(InOrder(engine.policy, order))
        with self._turnstile.turn:
            rollouts, metrics = engine.run(batch, step=begun.number + 1)
        rollouts["token_versions"] = self._versions.of(rollouts["token_versions"])
        return Ready(begun.number, rollouts, metrics, begun.data)

    def _first_to_end(self, begun: Begun) -> Ready:
        """Sample more than a step takes, and take the groups that end first."""
        turnstile, times = self._turnstile, self._size.generations
        step = begun.number + 1
        groups = list(begun.carried)
        groups += new_groups(
            begun.prompts, times, lambda row: self._engine.seed_of(step, row)
        )
        order = list(range(len(groups)))
        if self._options.sort_by_length:
            order = self._longest_first([int(g.prompt["idx"][0]) for g in groups])
        tail = Tail(
            self._stream,
            self._limits,
            updates=self._versions.updates,
            check=turnstile.check,
        )
        schedule, number = turnstile.schedule, begun.number
        must = tail.renew(groups, schedule.oldest_allowed(number))
        must |= {n for n, g in enumerate(groups) if schedule.must_end(number, g.oldest)}
        first = FirstToEnd(must=must, wanted=self._size.prompts, total=len(groups))
        with turnstile.turn, turnstile.generating():
            tail.gather(str(number), groups, first, order)
        chosen = [groups[place] for place in first.chosen]
        with turnstile.turn:
            rollouts, metrics = self._engine.with_policy(
                Answered([r for group in chosen for r in group.responses])
            ).run(
                repeat_prompts(
                    BatchedDataDict.from_batches([g.prompt for g in chosen]), times
                ),
                step=step,
            )
        left = [groups[place] for place in first.left]
        metrics = {**metrics, **tail.counts}
        return Ready(number, rollouts, metrics, begun.data, left)


def staleness(batch: Ready, schedule: Schedule) -> dict[str, float]:
    """How many updates old the tokens of a batch are when it is trained on.

    Raises:
        TrainingError: one is older than the schedule allows.
    """
    rollouts, number = batch.rollouts, batch.number
    versions = rollouts["token_versions"][rollouts["token_mask"] > 0]
    oldest, newest = int(versions.min()), int(versions.max())
    schedule.check_versions(number, oldest, newest)
    return {
        "staleness_mean": number - float(versions.double().mean()),
        "staleness_max": float(number - oldest),
    }
