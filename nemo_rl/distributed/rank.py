"""Who am I among the processes; the one table of SLURM and torchrun variable names.

Knows nothing about Ray or torch: a rank is arithmetic and an address.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

from nemo_rl.utils.exceptions import ConfigurationError, ResourceError

LAUNCHER_VARIABLES: dict[str, dict[str, str]] = {
    "torchrun": {
        "rank": "RANK",
        "world_size": "WORLD_SIZE",
        "local_rank": "LOCAL_RANK",
        "node_rank": "GROUP_RANK",
    },
    "slurm": {
        "rank": "SLURM_PROCID",
        "world_size": "SLURM_NTASKS",
        "local_rank": "SLURM_LOCALID",
        "node_rank": "SLURM_NODEID",
    },
}
"""Property of a rank -> name of the variable, per launcher; torchrun wins."""

MASTER_VARIABLES = {"master_addr": "MASTER_ADDR", "master_port": "MASTER_PORT"}
"""Where rank 0 listens; the same names for every launcher."""

SCHEDULER_PREFIXES = ("SLURM_", "PMI_", "PMI2_", "PMIX_", "OMPI_")
"""Variables a worker must not see: libraries that find them start their own MPI."""

PORT_RANGE = (20000, 32000)
"""Above Ray's default worker ports (10002-19999), below Linux's ephemeral range."""


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """Place of one worker process among its peers.

    Example: rank 5 of two nodes with four workers each is
    ``RankInfo(rank=5, world_size=8, local_rank=1, node_rank=1, ...)``.
    """

    rank: int
    """Global rank, 0 .. world_size - 1; consecutive ranks share a node."""
    world_size: int
    """Number of workers in the group."""
    local_rank: int = 0
    """Index among the workers of the same node."""
    node_rank: int = 0
    """Index of the node."""
    master_addr: str = "127.0.0.1"
    """Address of the node of rank 0."""
    master_port: int = 29500
    """Port free on that node when the group was started."""
    use_gpu: bool = False
    """Whether this worker owns a GPU."""

    @property
    def init_method(self) -> str:
        """Rendezvous address for ``torch.distributed.init_process_group``."""
        host = f"[{self.master_addr}]" if ":" in self.master_addr else self.master_addr
        return f"tcp://{host}:{self.master_port}"

    def torch_env(self) -> dict[str, str]:
        """Return the variables torchrun would set for this rank."""
        values = {
            name: str(getattr(self, key))
            for key, name in LAUNCHER_VARIABLES["torchrun"].items()
        }
        for key, name in MASTER_VARIABLES.items():
            values[name] = str(getattr(self, key))
        return values

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, *, use_gpu: bool = False
    ) -> RankInfo:
        """Read the rank a launcher gave this process; a lone process is rank 0 of 1.

        Args:
            environ: Variables to read; the process's own when None.
            use_gpu: Whether this process owns a GPU.

        Raises:
            ConfigurationError: A launcher's variables are incomplete or not numbers.
        """
        environ = os.environ if environ is None else environ
        for names in LAUNCHER_VARIABLES.values():
            if names["rank"] in environ and names["world_size"] in environ:
                break
        else:
            return cls(rank=0, world_size=1, use_gpu=use_gpu)
        numbers = {key: _integer(environ, name) for key, name in names.items()}
        if numbers["rank"] >= numbers["world_size"]:
            raise ConfigurationError(
                f"{names['rank']}={numbers['rank']} is not below "
                f"{names['world_size']}={numbers['world_size']}."
            )
        return cls(
            **numbers,
            master_addr=environ.get(MASTER_VARIABLES["master_addr"], "127.0.0.1"),
            master_port=_integer(environ, MASTER_VARIABLES["master_port"], 29500),
            use_gpu=use_gpu,
        )


def _integer(environ: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environ.get(name, str(default))
    if not text.isdigit():
        raise ConfigurationError(f"{name}={text!r} is not a whole number.")
    return int(text)


def strip_scheduler_variables() -> list[str]:
    """Remove the scheduler's variables from this process; return the names removed."""
    found = [name for name in os.environ if name.startswith(SCHEDULER_PREFIXES)]
    unset(found)
    return found


def unset(names: Iterable[str]) -> None:
    """Remove variables from this process; absent ones are no matter."""
    for name in names:
        os.environ.pop(name, None)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables in this process for the length of a block, then restore them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def find_free_port(low: int = PORT_RANGE[0], high: int = PORT_RANGE[1]) -> int:
    """Return a TCP port of this host in [low, high) on which nobody listens.

    The start is random, so two groups started together seldom pick the same one.

    Raises:
        ResourceError: Every port of the range is taken.
    """
    ports = range(low, high)
    start = random.SystemRandom().randrange(len(ports))
    for offset in range(len(ports)):
        port = ports[(start + offset) % len(ports)]
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            if _can_bind(probe, port):
                return port
    raise ResourceError(
        f"No free TCP port in {low}-{high - 1} on {socket.gethostname()}."
    )


def _can_bind(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("", port))
    except OSError:
        return False
    return True
