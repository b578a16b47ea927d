"""The cluster section: how many machines, what of each, for how long."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from nemo_rl.config.base import BaseConfig

_MEMORY = re.compile(r"\d+[KMGT]?")
_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){0,2}")
"""SLURM's: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:...]."""


class ClusterConfig(BaseConfig):
    """How many machines, what of each, for how long."""

    num_nodes: int = Field(1, ge=1)
    """Machines."""
    spare_nodes: int = Field(0, ge=0)
    """Machines allocated beside them, to take the place of one that fails its checks
    before training."""
    gpus_per_node: int = Field(8, ge=0)
    """GPUs of each machine, one worker process per GPU; 0 trains on CPUs."""
    cpu_workers_per_node: int = Field(0, ge=0)
    """Worker processes of each machine where gpus_per_node is 0."""
    num_cpus_per_worker: int = Field(1, ge=1)
    """CPU cores, and threads, of each worker process."""
    exclusive: bool = True
    """Whole machines; false shares them with other jobs, and takes of each only what
    cpus_per_node and memory_per_node say."""
    cpus_per_node: int | None = Field(None, ge=1)
    """CPU cores of each machine where it is shared; None means the workers' and two
    more, for Ray and the driver."""
    memory_per_node: str | None = None
    """Memory of each machine where it is shared, such as "64G"; None leaves it to the
    site, whose default may be all of it."""
    time: str = "04:00:00"
    """Time limit of the SLURM job."""
    hang_timeout_s: float | None = Field(1800.0, gt=0)
    """End a run, with the stacks of all its processes, once no process has got
    anything done for this long; null never does."""
    container: str | None = None
    """Container image of the SLURM job; None runs without one."""
    job_name: str | None = None
    """Name of the SLURM job; None means the recipe's."""
    partition: str | None = None
    """SLURM partition; None leaves it to the site."""
    account: str | None = None
    """SLURM account; None leaves it to the site."""

    @field_validator("time", mode="before")
    @classmethod
    def _time_limit(cls, value: object) -> object:
        # YAML 1.1 reads an unquoted 04:00:00 as the number 14400 (base 60).
        if isinstance(value, int) and not isinstance(value, bool) and value >= 3600:
            minutes, seconds = divmod(value, 60)
            return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return value

    @field_validator("time")
    @classmethod
    def _slurm_time(cls, value: str) -> str:
        if not _TIME.fullmatch(value):
            raise ValueError("is no time limit. Expected 'HH:MM:SS' or 'D-HH:MM:SS'.")
        return value

    @field_validator("memory_per_node")
    @classmethod
    def _slurm_memory(cls, value: str | None) -> str | None:
        if value is not None and not _MEMORY.fullmatch(value):
            raise ValueError("is no amount of memory. Expected '64G'.")
        return value

    @model_validator(mode="after")
    def _whole_or_shared(self) -> Self:
        sizes = ("cpus_per_node", "memory_per_node")
        given = [name for name in sizes if getattr(self, name) is not None]
        if self.exclusive and given:
            raise ValueError(
                f"{' and '.join(given)} given, but exclusive=true has all of a "
                "machine. Set exclusive to false, or leave them out."
            )
        return self

    @model_validator(mode="after")
    def _some_workers(self) -> Self:
        if self.gpus_per_node == 0 and self.cpu_workers_per_node == 0:
            raise ValueError(
                "gpus_per_node=0 and cpu_workers_per_node=0 leave no worker. Set "
                "cpu_workers_per_node to 1 or more to train on CPUs."
            )
        if self.gpus_per_node and self.cpu_workers_per_node:
            raise ValueError(
                f"gpus_per_node={self.gpus_per_node} and cpu_workers_per_node="
                f"{self.cpu_workers_per_node}: workers own either GPUs or CPUs. Set "
                "one of them to 0."
            )
        return self

    @property
    def use_gpus(self) -> bool:
        """Whether workers own GPUs."""
        return self.gpus_per_node > 0

    @property
    def workers_per_node(self) -> int:
        """Worker processes of each machine."""
        return self.gpus_per_node or self.cpu_workers_per_node

    @property
    def world_size(self) -> int:
        """Worker processes of all machines."""
        return self.num_nodes * self.workers_per_node
