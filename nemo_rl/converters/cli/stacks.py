"""Logits of one prompt by Megatron and by transformers, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.files import human_size

_PROGRAM = "nemo_rl.backends.training.megatron.prompt_check"
_LIBRARIES = ("megatron", "transformers")
_BESIDE = 2 << 30
"""Memory of the libraries."""


def why_not(elements: int) -> str | None:
    """Why the two cannot run here, or None if they can.

    Args:
        elements: of all weights; each stack has them in float32, one after the other.
    """
    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    needed, free = elements * 4 * 3 // 2 + _BESIDE, _available()
    if free is not None and free < needed:
        return f"they need {human_size(needed)} of memory, {human_size(free)} are free"
    return None


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def compare_stacks(checkpoint: Path, config: Path, folder: Path) -> str:
    """Run both on one prompt.

    Args:
        checkpoint: distributed checkpoint.
        config: folder of its ``config.json``.
        folder: Hugging Face folder of the same model.

    Returns:
        A sentence about logits and greedy continuation, which are equal.

    Raises:
        CheckpointError: they are not, or one of the two could not be run.
    """
    command = [sys.executable, "-m", _PROGRAM, checkpoint, config, folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, 1) or not lines:
        reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise CheckpointError(f"the logits could not be compared: {reason[0]}")
    found: dict[str, Any] = json.loads(lines[-1])
    text = (
        f"largest difference of a logit {found['difference']:.1e}, of the largest "
        f"logit {found['largest']:.1f}"
    )
    if not found["equal"]:
        raise CheckpointError(
            f"{checkpoint} and {folder} hold the same weights, but Megatron and "
            f"transformers compute different models: {text}; Megatron goes on with "
            f"{found['megatron']!r}, transformers with {found['transformers']!r}"
        )
    same = f"Megatron and transformers compute the same: {text}"
    if not found["megatron"]:
        return f"{same}; a reward model continues nothing"
    return f"{same}; both continue {found['prompt']!r} with {found['megatron']!r}"
