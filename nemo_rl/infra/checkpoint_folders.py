"""Checkpoint folders on disk: names, the newest whole one, what a crash left.

Reading only needs this module: it takes no lock and is safe beside a running job.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_rl.infra.manifest import STATE_NAME, Manifest, ManifestError, verify
from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.files import fsync_path, remove_tree

log = logging.getLogger(__name__)

_FINAL = re.compile(r"^step_(\d+)$")
_HIDDEN = re.compile(r"^\.step_(\d+)\.(tmp|old|trash)-")


@dataclass(frozen=True)
class CheckpointInfo:
    """A whole checkpoint.

    Attributes:
        step: training steps completed when it was taken.
        path: its folder.
        state: `trainer_state.json` as a mapping ({} where none was written).
        metrics: the metrics given when it was written.
    """

    step: int
    path: Path
    state: dict[str, Any] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)


def step_name(step: int) -> str:
    """Folder name of a step: step_000010."""
    return f"step_{step:06d}"


def steps_in(directory: Path) -> list[int]:
    """Steps that have a folder in `directory`, whole or not; ascending."""
    if not directory.is_dir():
        return []
    matches = (_FINAL.match(entry.name) for entry in directory.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def find_newest(directory: Path) -> tuple[CheckpointInfo | None, dict[int, str]]:
    """Find the newest whole checkpoint and what is wrong with each newer one.

    Raises:
        CheckpointError: there are checkpoints and all are damaged.
    """
    damage: dict[int, str] = {}
    for step in reversed(steps_in(directory)):
        path = directory / step_name(step)
        try:
            found = info_of(path, verify(path))
        except ManifestError as error:
            damage[step] = str(error)
            continue
        for newer, reason in damage.items():
            log.warning(
                "checkpoint %s is damaged: %s. Falling back to %s.",
                step_name(newer),
                reason,
                path,
            )
        return found, damage
    if damage:
        listing = "\n".join(f"  {step_name(s)}: {why}" for s, why in damage.items())
        raise CheckpointError(
            f"every checkpoint in {directory} is damaged:\n{listing}\nRestore one from "
            "a backup, or start anew with another checkpointing.checkpoint_dir."
        )
    return None, damage


def info_of(path: Path, manifest: Manifest) -> CheckpointInfo:
    """Describe the checkpoint at `path`.

    Raises:
        ManifestError: its state is listed but cannot be read.
    """
    state = {}
    if STATE_NAME in manifest.files:
        file = path / STATE_NAME
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ManifestError(f"{file} cannot be read: {error}") from error
    return CheckpointInfo(manifest.step, path, state, manifest.metrics)


def check_fingerprint(
    path: Path, saved: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint of something else.

    Raises:
        CheckpointError: names each difference with both values.
    """
    differences = [
        f"  {name}: the checkpoint has {saved.get(name)!r}, "
        f"this run has {expected.get(name)!r}"
        for name in sorted({*saved, *expected})
        if saved.get(name) != expected.get(name)
    ]
    if differences:
        listing = "\n".join(differences)
        raise CheckpointError(
            f"{path} belongs to another run:\n{listing}\nContinue with the settings "
            "of the checkpoint, or choose another checkpointing.checkpoint_dir."
        )


def recover(directory: Path) -> None:
    """Undo a replacement that was interrupted; remove every hidden folder.

    Only for the holder of the folder's lock.
    """
    for entry in sorted(directory.iterdir()):
        match = _HIDDEN.match(entry.name)
        if match is None:
            continue
        final = directory / step_name(int(match[1]))
        if match[2] == "old" and not final.exists():
            os.rename(entry, final)
            fsync_path(directory)
            continue
        log.info("removing %s, left by a run that was stopped", entry)
        remove_tree(entry)


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as it comes back from a JSON file: tuples are lists, and so on."""
    return json.loads(json.dumps(dict(values), default=str))
