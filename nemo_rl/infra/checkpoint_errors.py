"""The sentences a person reads when a checkpoint cannot be saved; no other logic."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from nemo_rl.infra.lock import Holder
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from nemo_rl.utils.files import human_size

KEY = "checkpointing.checkpoint_dir"


def save_failed(
    directory: Path, step: int, *, cause: BaseException, good_steps: Sequence[int]
) -> CheckpointError:
    """A save that broke off: where, why, how much room is left, what still stands."""
    try:
        free = f"{human_size(shutil.disk_usage(directory).free)} free"
    except OSError:
        free = "free space unknown"
    good = f"that of step {max(good_steps)} stays" if good_steps else "there is none"
    return CheckpointError(
        f"the checkpoint of step {step} could not be written to {directory} ({free}): "
        f"{cause}. What was written of it has been removed; of earlier checkpoints, "
        f"{good}."
    )


def unwritable(directory: Path, cause: OSError) -> ConfigurationError:
    """The folder refused a small file before training began."""
    return ConfigurationError(
        f"{KEY}={directory} cannot be written: {cause.strerror or cause}. Choose a "
        "folder that every node can write, or set checkpointing.enabled to false."
    )


def too_small(directory: Path, free: int, required: int) -> ConfigurationError:
    """The file system has less room than one checkpoint takes."""
    return ConfigurationError(
        f"{KEY}={directory} has {human_size(free)} free, one checkpoint needs about "
        f"{human_size(required)}. Free some space, choose another folder, or set "
        "checkpointing.enabled to false."
    )


def taken_over(directory: Path, holder: Holder | None) -> CheckpointError:
    """Another run holds the folder that this one had locked."""
    who = holder.describe() if holder else "another run"
    return CheckpointError(
        f"{directory} has been taken over by {who}; this run writes no more "
        f"checkpoints into it. Start it again with another {KEY}."
    )


def not_resuming(directory: Path, found: str) -> ConfigurationError:
    """Old checkpoints are in the way of a run that must not continue them."""
    return ConfigurationError(
        f"{directory} holds {found} of an earlier run and checkpointing.resume is "
        f"false. Choose another {KEY}, move the old checkpoints away, or set resume "
        "to true."
    )
