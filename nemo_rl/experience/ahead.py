"""AheadSource: rollouts of the next steps are sampled while a step trains.

``schedule.py`` says which batch may start and when the weights may change; this obeys
it with S + 1 threads. Batches are trained on in the order of the data set, and seeds
depend on the run's seed, step and row, never on timing.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.replay import Ready, read_replay, write_replay
from nemo_rl.experience.rollout import RolloutEngine
from nemo_rl.experience.sampler import BatchSampler, Begun, Size, staleness
from nemo_rl.experience.schedule import AheadOptions, LengthBook, Schedule
from nemo_rl.experience.source import Metrics, Sampled
from nemo_rl.experience.tail import Group, Limits
from nemo_rl.experience.turnstile import (
    Closed,
    SharedGenerator,
    Turnstile,
    Versions,
)
from nemo_rl.utils.exceptions import ConsistencyError

log = logging.getLogger(__name__)

_JOIN_S = 5.0


class AheadSource:
    """Samples up to S + 1 batches at once, none with weights that are too old for it.

    Args:
        engine: whose policy has ``generate``, ``refit``, ``version`` and, for
            over-sampling or overlapping calls, ``stream``.
        options: how far ahead.
        data: a ``DataModule``.
        prompts: of a step (P).
        generations: responses per prompt (G).
        limits: lengths in tokens, for over-sampling.
        record: called with step and rollouts once a step takes them.

    Attributes:
        engine: the same, sharing the generator with the threads.
    """

    phase = "generation_wait"

    def __init__(
        self,
        engine: RolloutEngine,
        options: AheadOptions,
        *,
        data: Any,
        prompts: int,
        generations: int,
        limits: Limits,
        record: Callable[[int, BatchedDataDict], None],
    ) -> None:
        self._policy, self._options = engine.policy, options
        self._data, self._size, self._record = data, Size(prompts, generations), record
        self._turnstile = Turnstile(Schedule(options, total=0))
        self.engine = engine.with_policy(SharedGenerator(self._policy, self._turnstile))
        self._versions, self._lengths = Versions(), LengthBook()
        self._sampler = BatchSampler(
            self.engine,
            self._turnstile,
            options=options,
            size=self._size,
            stream=self._policy.stream,
            limits=limits,
            versions=self._versions,
            longest_first=self._longest_first,
        )
        self._threads: list[threading.Thread] = []
        self._draws: dict[int, Iterator[BatchedDataDict]] = {}
        self._drawn: dict[int, BatchedDataDict] = {}
        self._ready: dict[int, Ready] = {}
        self._saved: dict[int, Ready] = {}
        self._carried: list[Group] = []
        self._carried_in: list[Group] = []
        self._position: dict[str, Any] = {}
        self._starting = threading.Lock()
        self._waited_s, self._since = 0.0, time.perf_counter()

    def open(
        self, step: int, total: int, saved: Path | None
    ) -> Iterator[BatchedDataDict]:
        """See ``RolloutSource``; starts the threads."""
        turnstile = self._turnstile
        turnstile.schedule = Schedule(self._options, total=total, version=step)
        # Requests go to the generator directly, which may have no weights so far.
        self._policy.refit()
        self._versions.note(self._policy.version, step)
        self._position = self._data.state_dict()
        if saved is not None:
            ready, self._carried, lengths = read_replay(saved, self._data)
            self._saved = {batch.number: batch for batch in ready}
            self._lengths = LengthBook(lengths)
        self._carried_in = self._carried
        count = 1 if self._options.one_at_a_time else self._options.max_staleness + 1
        self._threads = [
            threading.Thread(target=self._work, name=f"rollouts-{n}", daemon=True)
            for n in range(count)
        ]
        self._since = time.perf_counter()
        for thread in self._threads:
            thread.start()
        return self._prompts(step)

    def next(self, prompts: BatchedDataDict, step: int) -> Sampled:
        """See ``RolloutSource``.

        Raises:
            TrainingError: a token is older than allowed.
            Exception: what a thread has failed with.
        """
        turnstile, number = self._turnstile, step - 1
        schedule, started = turnstile.schedule, time.perf_counter()
        with turnstile.changed:
            depth = len(schedule.finished)
            turnstile.wait_for(lambda: number in self._ready)
            batch = self._ready.pop(number)
            schedule.consume(number)
            self._carried, self._position = batch.carried, batch.data
        now = time.perf_counter()
        self._waited_s += now - started
        rollouts = batch.rollouts
        rows = rollouts["idx"].tolist()
        lengths = rollouts["token_mask"].sum(-1).tolist()
        with turnstile.changed:
            self._lengths.observe(rows, lengths)
        metrics = {**batch.metrics, **staleness(batch, schedule)}
        metrics["buffer_depth"] = float(depth)
        metrics |= self._fractions(now)
        self._record(step, rollouts)
        return rollouts, metrics

    def again(self, prompts: BatchedDataDict, step: int) -> Sampled:
        """See ``RolloutSource``; what comes next was sampled with the same weights."""
        raise ConsistencyError(
            f"step {step}: its responses do not come from the weights they are said to "
            "come from, and those of the next steps are sampled already. Resume from "
            "the last checkpoint; the report is in the run's folder guard/."
        )

    def refit(self) -> Metrics:
        """See ``RolloutSource``; waits for running responses unless in flight."""
        turnstile, started = self._turnstile, time.perf_counter()
        schedule = turnstile.schedule
        with turnstile.changed:
            schedule.update_wanted = True
            turnstile.wait_for(schedule.may_update)
        self._waited_s += time.perf_counter() - started
        metrics = self._policy.refit() or {}
        with turnstile.changed:
            schedule.update()
            self._versions.note(self._policy.version, schedule.version)
            turnstile.changed.notify_all()
        return metrics

    def data_state(self) -> dict[str, Any]:
        """See ``RolloutSource``: after the prompts of the last batch trained on."""
        return self._position

    def exclusively(self) -> AbstractContextManager[Any]:
        """See ``RolloutSource``."""
        if self._options.deterministic:
            self._settle()
        return self._turnstile.turn

    def save(self, folder: Path) -> None:
        """See ``RolloutSource``.

        What is under way is sampled again after a resume, from the same seeds. With
        ``deterministic`` the weights it needs would then be gone: it is waited for.
        """
        turnstile = self._turnstile
        if self._options.deterministic:
            self._settle()
        with turnstile.changed:
            ready = [self._ready[number] for number in sorted(self._ready)]
            lengths = self._lengths.state()
        for number in write_replay(folder, ready, self._carried, lengths):
            log.warning(
                "the responses of step %d have columns that are no plain data; they "
                "are not in the checkpoint and are sampled again after a resume.",
                number + 1,
            )

    def _settle(self) -> None:
        """Wait until everything is sampled that may be now."""
        turnstile = self._turnstile
        schedule = turnstile.schedule
        with turnstile.changed:
            turnstile.wait_for(
                lambda: not schedule.running and not schedule.may_start()
            )

    def close(self) -> None:
        """See ``RolloutSource``."""
        self._turnstile.close()
        for thread in self._threads:
            thread.join(_JOIN_S)
            if thread.is_alive():
                # It ends when the generator does.
                log.info("%s is still generating", thread.name)
        self._threads = []

    def _prompts(self, first: int) -> Iterator[BatchedDataDict]:
        for number in itertools.count(first):
            started = time.perf_counter()
            with self._turnstile.changed:
                self._turnstile.wait_for(partial(self._is_drawn, number))
                prompts = self._drawn.pop(number, None)
            self._waited_s += time.perf_counter() - started
            if prompts is None:
                return
            yield prompts

    def _is_drawn(self, number: int) -> bool:
        """Whether a batch has its prompts, or will never have any."""
        return number in self._drawn or number >= self._turnstile.schedule.total

    def _work(self) -> None:
        """Sample batch after batch; what a thread does."""
        try:
            while (begun := self._begin()) is not None:
                number, data = begun.number, begun.data
                batch = self._saved.pop(number, None)
                if batch is None or not batch.fits(data, self._size.rows):
                    started = time.perf_counter()
                    batch = self._sampler.sample(begun)
                    batch.metrics["rollout_s"] = time.perf_counter() - started
                with self._turnstile.changed:
                    self._carried_in = batch.carried
                    self._ready[number] = batch
                    self._turnstile.schedule.finish(number)
                    self._turnstile.changed.notify_all()
        except Closed:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by the trainer
            self._turnstile.fail(error)

    def _begin(self) -> Begun | None:
        """Wait until a batch may start, and draw its prompts; None at the end."""
        turnstile = self._turnstile
        schedule = turnstile.schedule
        with self._starting:
            with turnstile.changed:
                turnstile.wait_for(
                    lambda: schedule.all_started() or schedule.may_start()
                )
                if schedule.all_started():
                    return None
                number = schedule.start()
            with turnstile.turn:
                carried, self._carried_in = self._carried_in, []
                total = self._options.under_way(self._size.prompts)
                prompts = self._draw(total - len(carried))
                data = self._data.state_dict()
            with turnstile.changed:
                if prompts is None:
                    schedule.end_before(number)
                else:
                    self._drawn[number] = prompts
                turnstile.changed.notify_all()
            return None if prompts is None else Begun(number, prompts, data, carried)

    def _draw(self, count: int) -> BatchedDataDict | None:
        if count <= 0:
            return BatchedDataDict()
        if count not in self._draws:
            self._draws[count] = self._data.batches(count)
        return next(self._draws[count], None)

    def _longest_first(self, rows: list[int]) -> list[int]:
        with self._turnstile.changed:
            return self._lengths.longest_first(rows)

    def _fractions(self, now: float) -> Metrics:
        """Shares of the time since the last step in which nobody did anything."""
        seconds, self._since = max(now - self._since, 1e-9), now
        waited, self._waited_s = self._waited_s, 0.0
        return {
            "trainer_idle_fraction": min(1.0, waited / seconds),
            "generation_idle_fraction": min(
                1.0, self._turnstile.take_idle_s() / seconds
            ),
        }
