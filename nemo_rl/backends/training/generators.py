"""The random generators of a rank, kept in a file beside a checkpoint.

Another layout has other streams: its ranks keep their fresh seeds. Knows torch's and
Python's generators, and hands on what an engine has besides.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def save_generators(folder: Path, layout: dict[str, int], **others: Any) -> None:
    """Write this rank's generators.

    Args:
        folder: made if it is not there.
        layout: sizes of the axes; they are restored under the same one only.
        **others: states of further generators, in plain types and tensors.
    """
    folder.mkdir(exist_ok=True)
    version, numbers, gauss = random.getstate()
    state = {
        "layout": layout,
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        **others,
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, folder / f"rank{dist.get_rank():05d}.pt")


def read_generators(folder: Path, layout: dict[str, int]) -> dict[str, Any] | None:
    """This rank's generators, None where another layout wrote them."""
    file = folder / f"rank{dist.get_rank():05d}.pt"
    if not file.exists():
        return None
    state = torch.load(file, weights_only=True)
    return state if state["layout"] == layout else None


def set_generators(state: dict[str, Any]) -> None:
    """Restore torch's and Python's generators from what was read."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
