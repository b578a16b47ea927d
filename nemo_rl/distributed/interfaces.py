"""All a driver may ask of processes: the VirtualCluster and WorkerGroup protocols.

Knows neither Ray nor torch; ``local.py`` and ``worker_groups.py`` are the two answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What each worker of a group takes of a cluster; None: all of its place."""

    bundles: Sequence[int] | None = None
    """The node of each worker, as an index into the cluster's; None: every place."""
    num_cpus: float | None = None
    """CPUs that Ray counts; 0 shares those of another group."""
    num_gpus: float | None = None
    """GPUs that Ray counts; 0 shares those of another group."""
    max_concurrency: int = 1
    """Calls that run at once in a worker, in threads of their own."""


@runtime_checkable
class WorkerGroup(Protocol):
    """A fixed number of worker objects, one per rank, each in its own process.

    Every call below returns when all asked ranks have answered. An error of a worker
    is raised here: a NemoRLError as itself with the rank and host added, anything else
    as WorkerError; the first failing rank wins, and after a failure the group is dead.
    """

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def run_all(
        self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call ``method(*args, **kwargs)`` on every rank; results in rank order.

        Raises:
            NemoRLError: What a worker raised.
            WorkerError: A worker died, raised something foreign, or ran past the time.
        """
        ...

    def run_per_rank(
        self,
        method: str,
        per_rank: Sequence[tuple[Any, ...]],
        timeout_s: float | None = None,
    ) -> list[Any]:
        """Call ``method(*per_rank[r])`` on rank r; results in rank order."""
        ...

    def run_one(self, rank: int, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call ``method`` on one rank only; no collective may run inside."""
        ...

    def shutdown(self) -> None:
        """End every worker; calling it twice is harmless."""
        ...


@runtime_checkable
class VirtualCluster(Protocol):
    """A number of worker places, on one machine or many."""

    @property
    def world_size(self) -> int:
        """Number of worker places."""
        ...

    @property
    def use_gpus(self) -> bool:
        """Whether each place owns a GPU."""
        ...

    def start_workers(
        self,
        actor_class: type,
        *,
        num_workers: int | None = None,
        env: Mapping[str, str] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> WorkerGroup:
        """Construct ``actor_class(rank_info, **init_kwargs)`` once per place.

        Args:
            actor_class: A plain class; its methods are what the group can run.
            num_workers: How many ranks; every place when None.
            env: Environment variables of the workers.
            init_kwargs: Keyword arguments, the same for each rank.

        Raises:
            ResourceError: There are fewer places than workers.
            WorkerError: A worker did not start.
        """
        ...

    def shutdown(self) -> None:
        """Give the places back; calling it twice is harmless."""
        ...
