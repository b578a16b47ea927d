"""A worker group that records its calls and answers from a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class FakeWorkers:
    """Obeys the WorkerGroup protocol without any process.

    Args:
        size: number of ranks.
        answer: ``(rank, method, args) -> result``; None answers None.
    """

    def __init__(
        self, size: int, answer: Callable[[int, str, tuple], Any] | None = None
    ) -> None:
        self.size = size
        self.answer = answer or (lambda rank, method, args: None)
        self.calls: list[tuple[str, list[tuple]]] = []
        self.ended = False

    def run_all(
        self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """The same arguments for every rank."""
        return self.run_per_rank(method, [args] * self.size)

    def run_per_rank(
        self, method: str, per_rank: list[tuple], timeout_s: float | None = None
    ) -> list[Any]:
        """One tuple of arguments per rank."""
        assert len(per_rank) == self.size
        self.calls.append((method, list(per_rank)))
        return [self.answer(rank, method, args) for rank, args in enumerate(per_rank)]

    def run_one(self, rank: int, method: str, *args: Any, **kwargs: Any) -> Any:
        """One rank alone."""
        self.calls.append((method, [args]))
        return self.answer(rank, method, args)

    def shutdown(self) -> None:
        """Remember that it was called."""
        self.ended = True


class FakeCluster:
    """Obeys the VirtualCluster protocol; hands out one FakeWorkers.

    Args:
        world_size: number of places.
        answer: of the workers.
    """

    use_gpus = False

    def __init__(self, world_size: int, answer: Any = None) -> None:
        self.world_size = world_size
        self.workers = FakeWorkers(world_size, answer)
        self.started: dict[str, Any] = {}

    def start_workers(
        self,
        actor_class: type,
        *,
        num_workers: int | None = None,
        env: Any = None,
        init_kwargs: Any = None,
    ) -> FakeWorkers:
        """Remember what was asked for."""
        self.started = {
            "actor_class": actor_class,
            "num_workers": num_workers,
            "env": env,
            "init_kwargs": init_kwargs,
        }
        return self.workers

    def shutdown(self) -> None:
        """Nothing to give back."""
