"""Turnstile: several threads share one generator, one environment and one trainer.

Everything but generation is done by one thread at a time, because environments and
tokenizers need not be thread-safe. Knows no batches; ``ahead.py`` has the threads.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.conversations import NOT_SAMPLED
from nemo_rl.experience.schedule import Schedule


class Closed(Exception):
    """The run has ended; a thread that gets this ends too."""


class Turnstile:
    """Locks around a ``Schedule``.

    Args:
        schedule: only touched with ``changed`` held.

    Attributes:
        turn: held by whoever touches data, tokenizer or environment.
        changed: notified when schedule, failure or results change.
        failure: the first error of a thread.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.turn = threading.Lock()
        self.changed = threading.Condition()
        self.failure: BaseException | None = None
        self.closed = False
        self._idle_since: float | None = time.perf_counter()
        self._idle_s = 0.0

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait with ``changed`` held.

        Raises:
            Closed: the run has ended.
            BaseException: what a thread has failed with.
        """
        self.changed.wait_for(lambda: self.closed or self.failure or ready())
        self.check()

    def check(self) -> None:
        """Raise what ``wait_for`` raises, without waiting."""
        if self.failure is not None:
            raise self.failure
        if self.closed:
            raise Closed

    def fail(self, error: BaseException) -> None:
        """Let every thread end with an error; the first counts."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def close(self) -> None:
        """Let every thread end."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Generate: without the turn, and while no update waits for the end of it."""
        self.turn.release()
        try:
            with self.changed:
                self.wait_for(self.schedule.may_generate)
                self._count(+1)
            try:
                yield
            finally:
                with self.changed:
                    self._count(-1)
                    self.changed.notify_all()
        finally:
            self.turn.acquire()

    def take_idle_s(self) -> float:
        """Seconds in which nothing was generated, since this was last asked."""
        with self.changed:
            now = time.perf_counter()
            if self._idle_since is not None:
                self._idle_s += now - self._idle_since
                self._idle_since = now
            seconds, self._idle_s = self._idle_s, 0.0
            return seconds

    def _count(self, change: int) -> None:
        now = time.perf_counter()
        if self._idle_since is not None:
            self._idle_s += now - self._idle_since
        self.schedule.generating += change
        self._idle_since = None if self.schedule.generating else now


class Versions:
    """The generator's numbers of its weights as updates made.

    A generator counts transfers, of which one update may have several (one that is
    repeated after a check, one after a checkpoint was loaded).
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._updates: list[int] = []

    def note(self, number: int, updates: int) -> None:
        """The generator's number from now on, and the updates made by now."""
        # Read by threads meanwhile, numbers first.
        self._updates.append(updates)
        self._numbers.append(number)

    def updates(self, number: int) -> int:
        """Updates that weights of this number have seen.

        A number above all that were noted is of the update that is being made.
        """
        place = bisect.bisect_left(self._numbers, number)
        if place < len(self._numbers):
            return self._updates[place]
        return self._updates[-1] + 1

    def of(self, column: torch.Tensor) -> torch.Tensor:
        """The same of a [B, S] column, which keeps its ``NOT_SAMPLED``."""
        found = column.clone()
        for number in column.unique().tolist():
            if number != NOT_SAMPLED:
                found[column == number] = self.updates(number)
        return found


class SharedGenerator:
    """``generate`` of a policy for several threads; adds ``token_versions``.

    Args:
        policy: has ``generate``, ``version`` and, where several calls may overlap,
            ``stream``.
        turnstile: lets go of the turn while generating.
    """

    def __init__(self, policy: Any, turnstile: Turnstile) -> None:
        self._policy, self._turnstile = policy, turnstile
        overlaps = getattr(policy, "stream", None) is not None
        self._one: Any = None if overlaps else threading.Lock()

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """See ``PolicyInterface``; called with the turn held."""
        with self._turnstile.generating():
            version = self._policy.version
            if self._one is None:
                output = self._policy.generate(data, greedy)
            else:
                with self._one:
                    output = self._policy.generate(data, greedy)
        if "token_versions" in output:
            return output
        # No update came between: it would have waited for the end.
        column = torch.full_like(output["output_ids"], version)
        return BatchedDataDict({**output, "token_versions": column})


class InOrder:
    """Hands prompts to a generator in another order and gives responses back in theirs.

    Args:
        generator: has ``generate``.
        order: row numbers, for batches of as many rows; others go through as they are.
    """

    def __init__(self, generator: Any, order: list[int]) -> None:
        self._generator, self._order = generator, order
        self._back = torch.argsort(torch.tensor(order)).tolist()

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """See ``PolicyInterface``."""
        if data.size != len(self._order):
            return self._generator.generate(data, greedy)
        output = self._generator.generate(data.reorder(self._order), greedy)
        return BatchedDataDict(output).reorder(self._back)
