"""What SLURM gave this node of a job: the one table of its variables for a launch.

Knows nothing about Ray; a process outside SLURM is node 0 of 1.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_rl.launch.hostlist import expand
from nemo_rl.utils.exceptions import LaunchError

VARIABLES = {
    "job_id": "SLURM_JOB_ID",
    "node_index": "SLURM_NODEID",
    "num_nodes": "SLURM_JOB_NUM_NODES",
    "node_list": "SLURM_JOB_NODELIST",
    "node_name": "SLURMD_NODENAME",
    "num_cpus": "SLURM_CPUS_ON_NODE",
    "num_gpus": "SLURM_GPUS_ON_NODE",
    "memory_mb": "SLURM_MEM_PER_NODE",
    "memory_per_cpu_mb": "SLURM_MEM_PER_CPU",
    "switches": "SLURM_TOPOLOGY_ADDR",
    "components": "SLURM_HET_SIZE",
}
"""Property of an allocation -> the variable srun sets for each task."""

MEBIBYTE = 1024**2
OBJECT_STORE_SHARE = 0.3
OBJECT_STORE_LIMITS = (80 * MEBIBYTE, 200 * 1024 * MEBIBYTE)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One node's share of a job."""

    job_id: int
    """SLURM's job number; 0 outside SLURM."""
    node_index: int
    """This node's place in the allocation; 0 is the head."""
    num_nodes: int
    """Nodes of the job."""
    node_names: tuple[str, ...]
    """All nodes, by index; of those that train, and behind them a spare one itself."""
    num_cpus: int
    """CPUs of the job on this node; never the host's total."""
    num_gpus: int
    """GPUs of the job on this node."""
    memory_mb: int
    """Memory of the job on this node in MiB; the host's where SLURM sets no limit."""
    switch: str = ""
    """Names of the switches above this node, joined by dots; "" if SLURM knows none."""

    @property
    def node_name(self) -> str:
        """SLURM's name of this node."""
        return self.node_names[self.node_index]

    @property
    def is_head(self) -> bool:
        """Whether this node runs Ray's head and the driver."""
        return self.node_index == 0 and not self.is_spare

    @property
    def is_spare(self) -> bool:
        """Whether this node only waits for the others' end."""
        return self.node_index >= self.num_nodes

    def object_store_bytes(self, shared_memory_free: int) -> int:
        """Return the size of Ray's object store.

        Args:
            shared_memory_free: bytes free in /dev/shm: a larger store would be
                placed on disk.
        """
        low, high = OBJECT_STORE_LIMITS
        wanted = int(OBJECT_STORE_SHARE * self.memory_mb * MEBIBYTE)
        return max(low, min(wanted, int(0.8 * shared_memory_free), high))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Allocation:
        """Read the variables of `VARIABLES`.

        Raises:
            LaunchError: a variable is missing or not a number.
        """
        if VARIABLES["job_id"] not in environ:
            raise LaunchError(
                "SLURM_JOB_ID is not set: nemo_rl.launch.node runs inside a job, "
                "started by slurm/job.sh. To submit one: python -m nemo_rl.launch "
                "RECIPE; without SLURM: python -m nemo_rl.launch RECIPE --site local."
            )
        if (components := _number(environ, "components", 1)) > 1:
            raise LaunchError(
                f"SLURM_HET_SIZE={components}: this is a heterogeneous job, but "
                "the nodes of a job have to be alike. Submit it without '#SBATCH "
                "hetjob' and without ':' between options."
            )
        numbers = {
            key: _number(environ, key)
            for key in ("job_id", "node_index", "num_nodes", "num_cpus")
        }
        names = tuple(expand(environ.get(VARIABLES["node_list"], "")))
        if len(names) != numbers["num_nodes"]:
            raise LaunchError(
                f"SLURM_JOB_NODELIST names {len(names)} nodes, but "
                f"SLURM_JOB_NUM_NODES is {numbers['num_nodes']}."
            )
        index = numbers["node_index"]
        actual = environ.get(VARIABLES["node_name"], names[index])
        if actual != names[index]:
            raise LaunchError(
                f"task {index} runs on {actual}, but node {index} of the job is "
                f"{names[index]}: start one task per node, in the order of the nodes."
            )
        return cls(
            node_names=names,
            num_gpus=_number(environ, "num_gpus", 0),
            # The last name is the node's own.
            switch=environ.get(VARIABLES["switches"], "").rpartition(".")[0],
            memory_mb=_memory(environ, numbers["num_cpus"]),
            **numbers,
        )


def _number(environ: Mapping[str, str], key: str, default: int | None = None) -> int:
    name = VARIABLES[key]
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdigit():
        raise LaunchError(f"{name}={text!r} is not a number: is this step's srun ours?")
    return int(text)


def _memory(environ: Mapping[str, str], num_cpus: int) -> int:
    per_node = _number(environ, "memory_mb", 0)
    # SLURM writes 0 for "all there is".
    per_cpu = _number(environ, "memory_per_cpu_mb", 0)
    return per_node or per_cpu * num_cpus or host_memory_mb()


def host_memory_mb() -> int:
    """Return the memory of this host in MiB."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return int(re.findall(r"MemTotal:\s+(\d+) kB", text)[0]) // 1024


def address_of(name: str, *, alone: bool = False) -> str:
    """Return this node's IPv4 address, by the name SLURM knows it under.

    Args:
        name: SLURM's name of the node.
        alone: whether no other node has to reach it.

    Raises:
        LaunchError: the name resolves to nothing, or to the loopback device, which
            no other node can reach.
    """
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise LaunchError(f"node {name} has no address: {error}.") from error
    addresses = [str(entry[4][0]) for entry in found]
    if alone and addresses:
        return addresses[0]
    public = [address for address in addresses if not address.startswith("127.")]
    if public:
        return public[0]
    # /etc/hosts of some images maps the own name to 127.0.1.1: ask the routing
    # table instead. Connecting a UDP socket sends nothing.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError as error:
            raise LaunchError(
                f"node {name} resolves to {addresses[0]} only and has no route out."
            ) from error
