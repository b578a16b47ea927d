"""WorkerShell: the actor around one worker object, and where it runs.

Knows Ray only to ask for its own node; the worker inside knows nothing of Ray.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import nemo_rl
from nemo_rl.distributed.rank import (
    RankInfo,
    find_free_port,
    strip_scheduler_variables,
)
from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import ResourceError

LIBRARIES = ("torch", "megatron-core", "transformers")
"""Distributions that the ranks of a group must have alike, beside nemo_rl."""
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 16384
READ_TIMEOUT_S = 10.0
"""For a live node to send the end of a dead worker's log."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker process runs."""

    host: str
    """Host name."""
    address: str
    """IP address its peers reach it at."""
    node_id: str
    """Ray's id of the node."""
    pid: int
    """Process id on that host."""
    gpu_ids: list[int] = field(default_factory=list)
    """GPUs Ray gave it."""
    log_file: str = ""
    """Where its stderr goes; empty where that is no file."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library -> version in this process."""


class WorkerShell:
    """Started before the worker: tells where it is, then builds and calls it."""

    def __init__(self) -> None:
        """Forget the scheduler, before any library of the worker sees it."""
        strip_scheduler_variables()
        pulse.start("worker")
        self._worker: Any = None

    def where(self) -> Place:
        """Return where this process runs."""
        import ray

        log = os.readlink("/proc/self/fd/2") if Path("/proc/self/fd/2").exists() else ""
        return Place(
            host=socket.gethostname(),
            address=ray.util.get_node_ip_address(),
            node_id=ray.get_runtime_context().get_node_id(),
            pid=os.getpid(),
            gpu_ids=[int(i) for i in ray.get_gpu_ids()],
            log_file=log if Path(log).is_file() else "",
            versions=library_versions(),
        )

    def free_port(self) -> int:
        """Return a port of this host for the rendezvous of the group."""
        return find_free_port()

    def build(
        self, actor_class: type, rank_info: RankInfo, init_kwargs: dict[str, Any]
    ) -> None:
        """Construct the worker."""
        pulse.start(f"{actor_class.__name__} rank {rank_info.rank}")
        with pulse.doing("__init__"):
            self._worker = actor_class(rank_info, **init_kwargs)

    def call(self, method: str, payload: tuple[tuple, dict]) -> Any:
        """Call a method of the worker with ``(args, kwargs)``."""
        args, kwargs = payload
        with pulse.doing(method):
            return getattr(self._worker, method)(*args, **kwargs)

    def close(self) -> None:
        """Let the worker end what it has started."""
        if hasattr(self._worker, "shutdown"):
            self._worker.shutdown()


def library_versions() -> dict[str, str]:
    """Return the versions that this process would import; "none" where absent."""
    found = {"nemo_rl": nemo_rl.__version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def require_versions(places: Sequence[Place], here: Mapping[str, str]) -> None:
    """Check that every worker has the libraries of the driver.

    Args:
        places: where the workers run.
        here: the driver's ``library_versions``.

    Raises:
        ResourceError: a version differs; names library, host and both versions.
    """
    for place in places:
        for library, version in place.versions.items():
            if version != here[library]:
                raise ResourceError(
                    f"{library} is {version} on host {place.host} and {here[library]} "
                    "where the driver runs: install the same on every node, best as "
                    "one container image, or set NRL_IGNORE_VERSION_MISMATCH=1."
                )


def sort_key(place: Place) -> tuple:
    """Order processes by host (node2 before node10), node, GPU, then process id."""
    parts = re.split(r"(\d+)", place.host)
    host = tuple(int(p) if p.isdigit() else p for p in parts)
    return host, place.node_id, place.gpu_ids, place.pid


def read_tail(place: Place) -> str:
    """Return the end of a worker's log, also of a dead one, if its node answers."""
    if not place.log_file:
        return ""
    if place.host == socket.gethostname():
        return _tail(place.log_file)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=place.node_id, soft=False)
    reader = ray.remote(_tail).options(num_cpus=0, scheduling_strategy=there)
    try:
        return ray.get(reader.remote(place.log_file), timeout=READ_TIMEOUT_S)
    except ray.exceptions.RayError:
        return ""


def _tail(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # Lines with a leading colon are Ray's own bookkeeping of the process.
    lines = [line for line in text.splitlines() if not line.startswith(":")]
    return "\n".join(lines[-LOG_TAIL_LINES:])
