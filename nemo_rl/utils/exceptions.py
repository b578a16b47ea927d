"""Every error the library raises on purpose, and the exit code each stands for.

    NemoRLError                      1
    ├── ConfigurationError           2   also a ValueError: the recipe or a keyword
    │   └── DataError                2   a dataset or one of its rows
    ├── CheckpointError              2   no usable, or somebody else's, checkpoint
    ├── LaunchError                  2   the job cannot be submitted or started
    ├── TrainingError                1   also a RuntimeError: while training
    │   ├── RewardError              2   the user's reward function
    │   ├── RefitError               1   weights did not reach the generator
    │   ├── ConsistencyError         1   the generator has not the trainer's weights
    │   ├── Hung                    75   no process moved for too long; begin anew
    │   └── WorkerError              1   a worker process failed
    │       └── WorkerDied           1   its process is gone
    └── ResourceError                1   also a RuntimeError: nodes, GPUs, memory

Each takes its message alone, so that it survives pickling between processes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class NemoRLError(Exception):
    """Base of all errors of nemo_rl; `exit_code` is what the driver ends with."""

    exit_code: ClassVar[int] = 1
    place: dict[str, Any] | None = None
    """Of a worker's error: rank, host, pid, group, died; set where it is worded."""


class ConfigurationError(NemoRLError, ValueError):
    """What was asked for cannot be: the message says what to change."""

    exit_code: ClassVar[int] = 2


class DataError(ConfigurationError):
    """A dataset is missing, empty or has a row that cannot be used."""


class CheckpointError(NemoRLError):
    """A checkpoint cannot be written or read, or belongs to another run."""

    exit_code: ClassVar[int] = 2


class LaunchError(NemoRLError):
    """A job cannot be rendered, submitted or brought up."""

    exit_code: ClassVar[int] = 2


class TrainingError(NemoRLError, RuntimeError):
    """Training cannot go on."""


class RewardError(TrainingError):
    """A reward function raised, or returned something that is no reward."""

    exit_code: ClassVar[int] = 2


class ConsistencyError(TrainingError):
    """Generator and trainer disagree on the weights: names tensors and the report."""


class Hung(TrainingError):
    """No process of the run got anything done for too long.

    Its exit code is that of a run that was stopped early: another attempt may pass.
    """

    exit_code: ClassVar[int] = 75


class RefitError(TrainingError):
    """Trained weights did not reach the generator: says who waited for whom."""


class WorkerError(TrainingError):
    """A worker raised an error of its own or died: names rank, host and cause."""


class WorkerDied(WorkerError):
    """A worker's process is gone, as opposed to having raised."""


class ResourceError(NemoRLError, RuntimeError):
    """The machines have less than the run asks for."""
