"""LocalCluster and LocalWorkerGroup: the worker protocol in this very process.

For CPU tests, debugging and one GPU: a breakpoint in a worker is a breakpoint here.
A deadline cannot interrupt the own process, so ``timeout_s`` is accepted and not kept.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from nemo_rl.distributed.failures import NamedErrors
from nemo_rl.distributed.rank import RankInfo, environment, find_free_port
from nemo_rl.utils.exceptions import ResourceError, WorkerError


class LocalWorkerGroup:
    """One worker, constructed and called in this process."""

    def __init__(
        self,
        actor_class: type,
        *,
        use_gpu: bool = False,
        env: Mapping[str, str] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Construct ``actor_class(rank_info, **init_kwargs)``.

        Raises:
            NemoRLError: What the constructor raised.
            WorkerError: Anything else the constructor raised.
        """
        self._host = socket.gethostname()
        self._environment = ExitStack()
        self._environment.enter_context(environment(dict(env or {})))
        rank_info = RankInfo(
            rank=0, world_size=1, master_port=find_free_port(), use_gpu=use_gpu
        )
        with ExitStack() as undo:
            undo.callback(self._environment.close)
            with self._named("__init__"):
                self._worker = actor_class(rank_info, **dict(init_kwargs or {}))
            undo.pop_all()

    @property
    def size(self) -> int:
        """Always 1."""
        return 1

    @property
    def worker(self) -> Any:
        """The worker object itself, for tests and debugging."""
        if self._worker is None:
            raise WorkerError("The worker group has been shut down.")
        return self._worker

    def run_all(
        self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call the method; return its result in a list of one."""
        return [self.run_one(0, method, *args, **kwargs)]

    def run_per_rank(
        self,
        method: str,
        per_rank: Sequence[tuple[Any, ...]],
        timeout_s: float | None = None,
    ) -> list[Any]:
        """Call the method with the arguments of rank 0."""
        if len(per_rank) != 1:
            raise WorkerError(
                f"{method}() got arguments for {len(per_rank)} ranks; the group has 1."
            )
        return [self.run_one(0, method, *per_rank[0])]

    def run_one(self, rank: int, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the method on rank 0; there is no other."""
        if rank != 0:
            raise WorkerError(f"There is no rank {rank}: the group has 1 worker.")
        worker = self.worker
        with self._named(method):
            return getattr(worker, method)(*args, **kwargs)

    def shutdown(self) -> None:
        """Call the worker's ``shutdown`` if it has one, then forget it."""
        worker, self._worker = self._worker, None
        with self._environment:
            if worker is not None and hasattr(worker, "shutdown"):
                with self._named("shutdown"):
                    worker.shutdown()

    def _named(self, method: str) -> NamedErrors:
        return NamedErrors(method, rank=0, host=self._host)


class LocalCluster:
    """A cluster of one place: this process."""

    def __init__(self, *, use_gpus: bool = False) -> None:
        """Say whether the one worker may use a GPU."""
        self._use_gpus = use_gpus
        self._groups: list[LocalWorkerGroup] = []

    @property
    def world_size(self) -> int:
        """Always 1."""
        return 1

    @property
    def use_gpus(self) -> bool:
        """Whether the worker owns a GPU."""
        return self._use_gpus

    def start_workers(
        self,
        actor_class: type,
        *,
        num_workers: int | None = None,
        env: Mapping[str, str] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> LocalWorkerGroup:
        """Construct the one worker.

        Raises:
            ResourceError: More than one worker was asked for.
        """
        if num_workers not in (None, 1):
            raise ResourceError(
                f"{num_workers} workers do not fit in LocalCluster, which has 1 place; "
                "use RayVirtualCluster."
            )
        group = LocalWorkerGroup(
            actor_class, use_gpu=self._use_gpus, env=env, init_kwargs=init_kwargs
        )
        self._groups.append(group)
        return group

    def shutdown(self) -> None:
        """Shut every group down."""
        while self._groups:
            self._groups.pop().shutdown()
