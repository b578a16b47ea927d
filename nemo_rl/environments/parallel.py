"""ParallelEnvironment: an environment in several Ray actors, or here without Ray.

Conversations are divided over the actors in order, and their answers put together in
that order: the result does not depend on the number of actors.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from nemo_rl.distributed import ray_session
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.environments.merging import Part, merge_returns
from nemo_rl.utils.env import worker_env
from nemo_rl.utils.exceptions import (
    ConfigurationError,
    NemoRLError,
    RewardError,
    WorkerError,
)

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
"""For Ray to start an actor, and for it to construct its environment."""


class EnvironmentActor:
    """One process with one environment; knows no Ray."""

    def __init__(self, build: Callable[[], EnvironmentInterface]) -> None:
        """Construct the environment."""
        self._environment = build()

    def where(self) -> str:
        """Return host and process id."""
        return f"pid {os.getpid()} on host {socket.gethostname()}"

    def step(self, *arguments: Any) -> EnvironmentReturn:
        """Let the environment step."""
        return self._environment.step(*arguments)


class ParallelEnvironment(EnvironmentInterface):
    """Runs an environment in ``num_workers`` actors where Ray is up.

    An actor that dies is started again, once, and its conversations are scored again;
    a second death ends the run. So does a step that takes longer than ``timeout_s``.

    Args:
        build: Constructs the environment; called in every actor.
        name: How messages call it.
        num_workers: Actors.
        timeout_s: Seconds for a step; None waits.
        gpus_per_worker: GPUs of each actor.
    """

    def __init__(
        self,
        build: Callable[[], EnvironmentInterface],
        *,
        name: str,
        num_workers: int,
        timeout_s: float | None = None,
        gpus_per_worker: float = 0.0,
    ) -> None:
        """Construct the environment here too: what is wrong with it shows early."""
        super().__init__()
        self.name, self.num_workers = name, num_workers
        self.timeout_s, self.gpus_per_worker = timeout_s, gpus_per_worker
        self._build = build
        self._here = build()
        self._actors: list[_Handle] = []

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Score the conversations, each actor its share.

        Raises:
            NemoRLError: What the environment raised.
            RewardError: It raised something else, or took too long.
            WorkerError: An actor died twice.
        """
        if not _ray_is_up():
            return self._here.step(message_log_batch, metadata)
        if not self._actors:
            self._start()
        shares = [
            (actor, rows)
            for number, actor in enumerate(self._actors)
            if (rows := range(len(metadata))[_share(number, self._actors, metadata)])
        ]
        for actor, rows in shares:
            actor.ask(
                [message_log_batch[row] for row in rows],
                [metadata[row] for row in rows],
            )
        limit = None if self.timeout_s is None else time.monotonic() + self.timeout_s
        try:
            parts = [
                Part(self.name, rows, actor.answer(limit)) for actor, rows in shares
            ]
        except (_TooLate, WorkerError):
            self.shutdown()
            raise
        return merge_returns(parts, len(metadata))

    def global_post_process_and_metrics(
        self, batch: BatchedDataDict
    ) -> tuple[BatchedDataDict, dict[str, float]]:
        """Look at the batch in this process."""
        return self._here.global_post_process_and_metrics(batch)

    def shutdown(self) -> None:
        """End the actors; a later step starts new ones."""
        actors, self._actors = self._actors, []
        if _ray_is_up():
            for actor in actors:
                actor.end()
        self._here.shutdown()

    def _start(self) -> None:
        self._actors = [
            _Handle(self, f"worker {number + 1} of {self.num_workers} of {self.name}")
            for number in range(self.num_workers)
        ]
        for actor in self._actors:
            actor.wait_for_start()

    def new_actor(self) -> Any:
        """Start an actor; it takes no place from those of training."""
        ray = _ray()
        variables = worker_env(use_gpus=self.gpus_per_worker > 0)
        variables["PYTHONPATH"] = ray_session.driver_python_path()
        actor = ray.remote(EnvironmentActor).options(
            num_cpus=0,
            num_gpus=self.gpus_per_worker,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )
        try:
            return actor.remote(self._build)
        except TypeError as error:
            raise ConfigurationError(
                f"{self.name} cannot be sent to another process: "
                f"{str(error).splitlines()[0]} Name it as env.reward_fn, or set "
                "env.num_workers to 0."
            ) from error


class _Handle:
    """The driver's end of one actor."""

    def __init__(self, owner: ParallelEnvironment, label: str) -> None:
        self._owner, self._label = owner, label
        self._restarted = False
        self._actor = owner.new_actor()
        self._where = "not started"

    def wait_for_start(self) -> None:
        reference = self._actor.where.remote()
        self._where = self._get(reference, time.monotonic() + START_TIMEOUT_S)

    def ask(self, *arguments: Any) -> None:
        self._arguments = _ray().put(arguments[0]), _ray().put(arguments[1])
        self._reference = self._actor.step.remote(*self._arguments)

    def answer(self, limit: float | None) -> EnvironmentReturn:
        try:
            return self._get(self._reference, limit)
        except _Died as error:
            if self._restarted:
                raise WorkerError(
                    f"{self._label} ({self._where}) died for the second time: {error}"
                ) from None
            logger.warning(
                "%s (%s) died and is started again: %s",
                self._label,
                self._where,
                error,
            )
        self._restarted = True
        self._actor = self._owner.new_actor()
        self.wait_for_start()
        self._reference = self._actor.step.remote(*self._arguments)
        timeout_s = self._owner.timeout_s
        limit = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            return self._get(self._reference, limit)
        except _Died as error:
            raise WorkerError(
                f"{self._label} ({self._where}) died again over the same "
                f"conversations: {error}"
            ) from None

    def end(self) -> None:
        _ray().kill(self._actor, no_restart=True)

    def _get(self, reference: Any, limit: float | None) -> Any:
        ray = _ray()
        left = None if limit is None else max(0.0, limit - time.monotonic())
        try:
            return ray.get(reference, timeout=left)
        except ray.exceptions.GetTimeoutError:
            raise _TooLate(
                f"{self._label} ({self._where}) did not answer within "
                f"{self._owner.timeout_s or START_TIMEOUT_S:g} s. Raise "
                "env.timeout_s, or look at what the environment waits for."
            ) from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, NemoRLError):
                raise cause from None
            raise RewardError(
                f"{self._label} raised {type(cause).__name__}: {cause}"
            ) from error
        except ray.exceptions.RayActorError as error:
            raise _Died(str(error).strip().splitlines()[0]) from None


class _TooLate(RewardError):
    """An actor is still busy: it must be ended."""


class _Died(Exception):
    """An actor's process has ended."""


def _share(number: int, actors: list[Any], items: list[Any]) -> slice:
    """The actor's contiguous part; the first ones have one more."""
    base, extra = divmod(len(items), len(actors))
    start = number * base + min(number, extra)
    return slice(start, start + base + (number < extra))


def _ray() -> Any:
    import ray

    return ray


def _ray_is_up() -> bool:
    return "ray" in sys.modules and _ray().is_initialized()
