"""RayWorkerGroup: one Ray actor per rank, called together, watched together.

The driver waits on all ranks at once: the first that fails or dies ends the group, so
no rank is left in a collective for a peer that will not come. Knows no method by name.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemo_rl.distributed import ray_session
from nemo_rl.distributed.failures import (
    Failure,
    dead_worker,
    foreign_error,
    placed,
    root_cause,
)
from nemo_rl.distributed.interfaces import WorkerOptions
from nemo_rl.distributed.rank import RankInfo
from nemo_rl.distributed.worker_shell import (
    Place,
    WorkerShell,
    library_versions,
    read_tail,
    require_versions,
    sort_key,
)
from nemo_rl.utils.env import flag, worker_env
from nemo_rl.utils.exceptions import (
    NemoRLError,
    ResourceError,
    WorkerDied,
    WorkerError,
)
from nemo_rl.utils.imports import require

if TYPE_CHECKING:
    from nemo_rl.distributed.virtual_cluster import RayVirtualCluster

START_TIMEOUT_S = 600.0
"""For Ray to start the processes; models are loaded after it."""
GRACE_S = 3.0
"""After a first failure, how long to listen for the failure that caused it."""
SHUTDOWN_S = 10.0
"""For a worker's own ``shutdown`` before it is killed."""


class RayWorkerGroup:
    """Actors on the places of a RayVirtualCluster; see ``interfaces.WorkerGroup``."""

    def __init__(
        self,
        virtual_cluster: RayVirtualCluster,
        actor_class: type,
        num_workers: int | None = None,
        *,
        env: Mapping[str, str] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        options: WorkerOptions | None = None,
    ) -> None:
        """Start the processes, number them, and construct a worker in each.

        Args:
            virtual_cluster: Where.
            actor_class: Plain class, constructed as
                ``actor_class(rank_info, **init_kwargs)``.
            num_workers: How many; every place when None.
            env: Environment variables on top of ``utils.env.worker_env``.
            init_kwargs: Keyword arguments, the same for each rank.
            options: What each takes of its place; a whole place when None.

        Raises:
            ResourceError: There are fewer places than workers, or Ray has too little.
            WorkerError: A worker did not start.
        """
        options = options or WorkerOptions()
        places = virtual_cluster.places()
        if options.bundles is not None:
            places = list(options.bundles)
        size = len(places) if num_workers is None else num_workers
        if not 1 <= size <= len(places):
            raise ResourceError(
                f"{size} workers do not fit in a cluster of {len(places)} places."
            )
        self._ray = require("ray")
        self._shells: list[Any] = []
        self._places: list[Place] = []
        self._name, self._use_gpus = actor_class.__name__, virtual_cluster.use_gpus
        # Two threads that call all ranks must not reach them in different orders.
        self._order = threading.Lock()
        cpus, gpus = options.num_cpus, options.num_gpus
        variables = worker_env(
            use_gpus=self._use_gpus, threads=virtual_cluster.num_cpus_per_worker
        )
        variables["PYTHONPATH"] = ray_session.driver_python_path()
        variables.update(env or {})
        actor = self._ray.remote(WorkerShell)
        self._shells = [
            actor.options(
                num_cpus=virtual_cluster.num_cpus_per_worker if cpus is None else cpus,
                num_gpus=int(self._use_gpus) if gpus is None else gpus,
                max_restarts=0,
                max_concurrency=options.max_concurrency,
                scheduling_strategy=virtual_cluster.in_bundle(bundle),
                runtime_env={"env_vars": variables},
            ).remote()
            for bundle in places[:size]
        ]
        self._number_ranks()
        self._construct(actor_class, dict(init_kwargs or {}))

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self._shells)

    @property
    def places(self) -> list[Place]:
        """Where each rank runs: host, node id, pid, log file."""
        return list(self._places)

    def run_all(
        self, method: str, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call the method on every rank with the same arguments."""
        self._require_alive()
        # Stored once and read by all, instead of serialised for each rank.
        payload = self._ray.put((args, kwargs))
        with self._order:
            refs = [shell.call.remote(method, payload) for shell in self._shells]
        return self._wait(refs, method, timeout_s)

    def run_per_rank(
        self,
        method: str,
        per_rank: Sequence[tuple[Any, ...]],
        timeout_s: float | None = None,
    ) -> list[Any]:
        """Call the method with each rank's own arguments."""
        self._require_alive()
        if len(per_rank) != self.size:
            raise WorkerError(
                f"{method}() got arguments for {len(per_rank)} ranks; the group has "
                f"{self.size}."
            )
        payloads = [self._ray.put((tuple(args), {})) for args in per_rank]
        with self._order:
            refs = [
                shell.call.remote(method, payload)
                for shell, payload in zip(self._shells, payloads, strict=True)
            ]
        return self._wait(refs, method, timeout_s)

    def run_one(self, rank: int, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call the method on one rank; no collective may run inside."""
        self._require_alive()
        if not 0 <= rank < self.size:
            raise WorkerError(
                f"There is no rank {rank}: the group has {self.size} workers."
            )
        payload = self._ray.put((args, kwargs))
        ref = self._shells[rank].call.remote(method, payload)
        return self._wait([ref], method, None, ranks=[rank])[0]

    def shutdown(self) -> None:
        """Let each worker end by its own ``shutdown``, then end its process."""
        if self._shells and self._ray.is_initialized():
            refs = [shell.close.remote() for shell in self._shells]
            self._ray.wait(refs, num_returns=len(refs), timeout=SHUTDOWN_S)
            self._kill()
        self._shells = []

    def _require_alive(self) -> None:
        if not self._shells:
            raise WorkerDied("The worker group has ended; start a new one.")

    def _number_ranks(self) -> None:
        """Ask each process where it is; sort so that ranks of a node are neighbours."""
        refs = [shell.where.remote() for shell in self._shells]
        found = self._wait(refs, "start", START_TIMEOUT_S)
        order = sorted(range(len(found)), key=lambda i: sort_key(found[i]))
        self._shells = [self._shells[i] for i in order]
        self._places = [found[i] for i in order]
        if not flag("NRL_IGNORE_VERSION_MISMATCH"):
            with contextlib.ExitStack() as end_group:
                end_group.callback(self._kill)
                require_versions(self._places, library_versions())
                end_group.pop_all()

    def _construct(self, actor_class: type, init_kwargs: dict[str, Any]) -> None:
        [port] = self._wait([self._shells[0].free_port.remote()], "start", 60.0, [0])
        nodes = list(dict.fromkeys(place.node_id for place in self._places))
        locals_seen = dict.fromkeys(nodes, 0)
        refs = []
        payload = self._ray.put(init_kwargs)
        for rank, place in enumerate(self._places):
            info = RankInfo(
                rank=rank,
                world_size=self.size,
                local_rank=locals_seen[place.node_id],
                node_rank=nodes.index(place.node_id),
                master_addr=self._places[0].address,
                master_port=port,
                use_gpu=self._use_gpus,
            )
            locals_seen[place.node_id] += 1
            refs.append(self._shells[rank].build.remote(actor_class, info, payload))
        self._wait(refs, "__init__", None)

    def _wait(
        self,
        refs: list[Any],
        method: str,
        timeout_s: float | None,
        ranks: list[int] | None = None,
    ) -> list[Any]:
        """Wait for every rank; whatever else happens, no rank is left behind."""
        with contextlib.ExitStack() as end_group:
            end_group.callback(self._kill)
            results = self._results(refs, method, timeout_s, ranks)
            end_group.pop_all()
        return results

    def _results(
        self,
        refs: list[Any],
        method: str,
        timeout_s: float | None,
        ranks: list[int] | None,
    ) -> list[Any]:
        rank_of = dict(zip(refs, ranks or range(len(refs)), strict=True))
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        results: dict[Any, Any] = {}
        failures: list[Failure] = []
        pending = list(refs)
        while pending:
            ready, pending = ray_session.wait_for_one(pending, deadline)
            if not ready:
                break
            failure = self._collect(ready[0], rank_of[ready[0]], method, results)
            if failure is not None:
                failures.append(failure)
                # A dead rank makes its peers' collectives fail, and their errors may
                # arrive before the news of the death.
                limit = time.monotonic() + (0.0 if failure.died else GRACE_S)
                deadline = min(limit, deadline or limit)
        if failures:
            raise root_cause(failures, size=self.size, group=self._name)
        if pending:
            late = sorted(rank_of[ref] for ref in pending)
            places = ", ".join(f"{r} on host {self._host(r)}" for r in late)
            raise WorkerError(
                f"{method}() did not end within {timeout_s:g} s on rank {places}; the "
                f"other {len(refs) - len(late)} rank(s) were done. The group was ended."
            )
        return [results[ref] for ref in refs]

    def _collect(
        self, ref: Any, rank: int, method: str, results: dict[Any, Any]
    ) -> Failure | None:
        errors = self._ray.exceptions
        host = self._host(rank)
        try:
            results[ref] = self._ray.get(ref)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, NemoRLError):
                return Failure(placed(cause, rank=rank, host=host), died=False)
            worded = foreign_error(
                method,
                f"{type(cause).__name__}: {cause}",
                rank=rank,
                host=host,
                trace=str(error),
            )
            return Failure(worded, died=False)
        except errors.RayError as error:
            return Failure(self._death(rank, method, str(error)), died=True)
        return None

    def _death(self, rank: int, method: str, reason: str) -> WorkerError:
        place = self._places[rank] if rank < len(self._places) else None
        tail = read_tail(place) if place is not None else ""
        return dead_worker(method, reason, rank=rank, place=place, log_tail=tail)

    def _host(self, rank: int) -> str:
        return self._places[rank].host if rank < len(self._places) else "unknown"

    def _kill(self) -> None:
        shells, self._shells = self._shells, []
        for shell in shells:
            # A process that is gone already needs no killing.
            with contextlib.suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(shell, no_restart=True)
