"""How Ray is started on one node: ports, sizes, token, arguments, environment.

Pure text and probing of local ports; it starts no process and imports no Ray.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nemo_rl.distributed import topology
from nemo_rl.distributed.rank import SCHEDULER_PREFIXES
from nemo_rl.launch.allocation import Allocation
from nemo_rl.utils.exceptions import LaunchError

PORT_BAND = (10000, 20000)
"""Below Linux's ephemeral range, and below the ports of the training ranks."""
BLOCK = 500
"""Ports per job and node: the named ones first, the rest for Ray's workers."""
NAMED_PORTS = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
    "ray-client-server-port",
)
HEAD_ONLY = {"port", "ray-client-server-port"}


@dataclass(frozen=True)
class PortPlan:
    """A block of free ports of one node.

    Its last port is nobody's: while the job lives its agent listens there, so that
    another job on this node sees that the block is taken before Ray uses it.
    """

    first: int
    """First port of the block."""

    @property
    def gcs(self) -> int:
        """The port other nodes and the driver connect to."""
        return self.first

    def flags(self, *, head: bool) -> list[str]:
        """Return the options of `ray start` that pin every port."""
        flags = [
            f"--{name}={self.first + index}"
            for index, name in enumerate(NAMED_PORTS)
            if head or name not in HEAD_ONLY
        ]
        low = self.first + len(NAMED_PORTS)
        return [
            *flags,
            f"--min-worker-port={low}",
            f"--max-worker-port={self.last - 1}",
        ]

    @property
    def last(self) -> int:
        """The port that marks the block as taken."""
        return self.first + BLOCK - 1

    @property
    def is_free(self) -> bool:
        """Whether nobody listens on those of its ports that Ray must have."""
        return all(is_free(self.first + n) for n in range(len(NAMED_PORTS) + 8))


def plan_ports(job_id: int) -> PortPlan:
    """Choose the block of ports of a job on this node.

    The job id picks the first candidate, so two jobs that share a node seldom
    meet; a block with a taken port is left for the next one.

    Raises:
        LaunchError: no block of the band is free.
    """
    plan, held = hold_ports(job_id)
    held.close()
    return plan


def hold_ports(job_id: int) -> tuple[PortPlan, socket.socket]:
    """Choose a block as `plan_ports` does, and keep other jobs from choosing it.

    The block is theirs again when the socket is closed, or its process ends.

    Raises:
        LaunchError: no block of the band is free.
    """
    for first in _blocks(job_id):
        plan, mark = PortPlan(first), socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        mark.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            mark.bind(("", plan.last))
            mark.listen(1)
        except OSError:
            mark.close()
            continue
        if plan.is_free:
            return plan, mark
        mark.close()
    raise LaunchError(
        f"no free block of {BLOCK} ports between {PORT_BAND[0]} and {PORT_BAND[1]} "
        f"on {socket.gethostname()}: which programs listen there? (ss -ltnp)"
    )


def _blocks(job_id: int) -> Iterator[int]:
    count = (PORT_BAND[1] - PORT_BAND[0]) // BLOCK
    for offset in range(count):
        yield PORT_BAND[0] + BLOCK * ((job_id + offset) % count)


def is_free(port: int) -> bool:
    """Return whether a server could listen on a port of this node."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        # As Ray's own servers do: a port in TIME_WAIT can be bound.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def write_token(path: Path) -> Path:
    """Create Ray's access token in a file only its owner can read.

    Whoever knows it can run code in the job, so it is in no log and on no command
    line: processes are told the path.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return path


def ray_environment(
    environ: Mapping[str, str], *, token_file: Path, temp_dir: Path
) -> dict[str, str]:
    """Return the environment of `ray start`, which its workers inherit.

    The scheduler's variables are left out: MPI and other libraries that find them
    in a worker would take it for a task of the job.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(SCHEDULER_PREFIXES)
    }
    kept.pop("RAY_ADDRESS", None)
    return kept | client_environment(token_file) | {"RAY_TMPDIR": str(temp_dir)}


def client_environment(token_file: Path) -> dict[str, str]:
    """Return what any process needs to talk to the job's Ray."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


def ray_arguments(
    allocation: Allocation,
    *,
    ip: str,
    ports: PortPlan,
    temp_dir: Path,
    head_address: str | None = None,
) -> list[str]:
    """Return the arguments of `ray` that start it on this node and stay with it.

    The autoscaler and the copying of workers' logs to the driver are left out: nodes
    neither come nor go, and the driver does not print what workers print.

    Args:
        allocation: this node's share; CPUs, GPUs and memory come from it alone.
        ip: this node's address.
        ports: this node's ports.
        temp_dir: node-local folder of the job.
        head_address: "ip:port" of the head; None on the head itself.
    """
    labels = topology.labels(allocation.node_index, allocation.switch)
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    role = ["--head", "--include-dashboard=false", "--no-monitor"]
    if head_address is not None:
        role = [f"--address={head_address}"]
    return [
        *("start", *role, "--block"),
        f"--node-ip-address={ip}",
        *ports.flags(head=head_address is None),
        f"--num-cpus={allocation.num_cpus}",
        f"--num-gpus={allocation.num_gpus}",
        f"--object-store-memory={allocation.object_store_bytes(shared)}",
        f"--temp-dir={temp_dir}",
        f"--labels={','.join(f'{key}={value}' for key, value in labels.items())}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
    ]
