"""Whatever a user calls a dataset becomes rows by index, or a clear refusal.

Knows no fields of a row; ``rows.py`` reads those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rl.data.datasets.registry import (
    load_dataset,
    pick_split,
    takes_split,
)
from nemo_rl.utils.exceptions import ConfigurationError, DataError

FINGERPRINT_ROWS = 4096
"""Rows, evenly spaced, that tell one dataset from another."""


def open_rows(
    dataset: Any,
    name: str | None,
    kwargs: Mapping[str, Any],
    search_dir: Path | str | None,
    split: str = "train",
) -> Any:
    """Return an object with len() and [index] for whatever names a dataset."""
    if dataset is None and name is None:
        raise ConfigurationError(
            "No dataset: set data.dataset_name, or pass dataset= to fit() or train()."
        )
    if dataset is None or isinstance(dataset, (str, Path)):
        given = str(name if dataset is None else dataset)
        # What the recipe says of its own dataset does not apply to another one.
        arguments = dict(kwargs) if given == name else {}
        if split != "train" and takes_split(given):
            arguments.setdefault("split", split)
        rows = load_dataset(given, search_dir=search_dir, **arguments)
    else:
        given, rows = f"the {type(dataset).__name__}", dataset
        rows = pick_split(rows, split, given) if hasattr(rows, "keys") else rows
    if isinstance(rows, Mapping) or not (
        hasattr(rows, "__len__") and hasattr(rows, "__getitem__")
    ):
        raise DataError(
            f"{given} is no dataset: expected a list of rows, or an object with len() "
            f"and [index], got {type(rows).__name__}."
        )
    if len(rows) == 0:
        raise DataError(f"{given} holds no rows.")
    return rows


def describe_row(rows: Any, idx: int) -> str:
    """Say where a row stands, for messages: by file and line where that is known."""
    describe = getattr(rows, "describe_row", None)
    return describe(idx) if describe is not None else f"row {idx}"


def fingerprint(rows: Any) -> str:
    """Return a hash of the rows: all of them, or some 4096 evenly spaced ones."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for idx in range(0, len(rows), max(1, len(rows) // FINGERPRINT_ROWS)):
        text = json.dumps(rows[idx], sort_keys=True, default=str)
        digest.update(text.encode())
    return digest.hexdigest()[:16]
