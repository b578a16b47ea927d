"""Whatever a user calls a dataset becomes rows by index, or a clear refusal.

Knows no fields of a row; ``rows.py`` reads those.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_rl.config.data import DataConfig, MixtureSourceConfig
from nemo_rl.data.datasets.fields import field
from nemo_rl.data.datasets.hub import pick_split
from nemo_rl.data.datasets.mixture import MixtureDataset, Source
from nemo_rl.data.datasets.registry import load_dataset, takes_split
from nemo_rl.data.datasets.split import hold_out
from nemo_rl.data.datasets.views import JoinedRows, RewrittenRows, describe_row
from nemo_rl.utils.exceptions import ConfigurationError, DataError

__all__ = ["describe_row", "fingerprint", "open_data", "open_rows"]

logger = logging.getLogger(__name__)

FINGERPRINT_ROWS = 4096
"""Rows, evenly spaced, that tell one dataset from another."""


def open_data(
    config: DataConfig,
    dataset: Any = None,
    val_dataset: Any = None,
    *,
    seed: int = 0,
    search_dir: Path | str | None = None,
) -> tuple[Any, Any]:
    """Return the rows to train and to validate on.

    Args:
        config: The data section.
        dataset: Instead of ``config.dataset_name`` and ``config.mixture``.
        val_dataset: Instead of ``config.val_dataset_name`` and of what
            ``config.split_validation_size`` holds out.
        seed: Decides the order of a mixture. What is held out depends on no seed, so
            that a run with another one validates on the same rows.
        search_dir: Folder of the recipe, for relative files.

    Returns:
        Two objects with ``len()`` and ``[index]``; the second may be None.

    Raises:
        ConfigurationError: No dataset is named, or the name is unknown.
        DataError: One is empty, or divides into nothing.
    """
    if dataset is None and config.mixture:
        sources = [
            _source(number, entry, search_dir)
            for number, entry in enumerate(config.mixture)
        ]
    else:
        rows = open_rows(
            dataset, config.dataset_name, config.dataset_kwargs, search_dir
        )
        sources = [Source("data.train", rows)]
    held_out: Any = None
    if val_dataset is not None or config.val_dataset_name is not None:
        held_out = open_rows(
            val_dataset,
            config.val_dataset_name,
            config.val_dataset_kwargs,
            search_dir,
            split="validation",
        )
    elif config.split_validation_size:
        # Before they are mixed: a row that a mixture repeats must not be in both.
        halves = [hold_out(s.rows, config.split_validation_size) for s in sources]
        sources = [
            source._replace(rows=train)
            for source, (train, _) in zip(sources, halves, strict=True)
        ]
        parts = [part for _, part in halves]
        held_out = parts[0] if len(parts) == 1 else JoinedRows(parts)
    if dataset is not None or not config.mixture:
        return sources[0].rows, held_out
    mixture = MixtureDataset(sources, seed=seed)
    for line in mixture.describe():
        logger.info("%(name)s: %(rows)d rows, %(samples)d samples an epoch", line)
    return mixture, held_out


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
            "No dataset: set data.dataset_name or data.mixture, or pass dataset= to "
            "fit() or train()."
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


def fingerprint(rows: Any) -> str:
    """Return a hash of the rows: all of them, or some 4096 evenly spaced ones.

    Of a mixture, how many samples each source gives is a part of it.
    """
    digest = hashlib.sha256(str(len(rows)).encode())
    digest.update(json.dumps(getattr(rows, "counts", [])).encode())
    for idx in range(0, len(rows), max(1, len(rows) // FINGERPRINT_ROWS)):
        text = json.dumps(rows[idx], sort_keys=True, default=str)
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def _source(
    number: int, entry: MixtureSourceConfig, search_dir: Path | str | None
) -> Source:
    """Open a dataset of a mixture and give its rows the fields that are wanted."""
    name = f"data.mixture[{number}] ({entry.dataset_name})"
    rows = open_rows(None, entry.dataset_name, entry.dataset_kwargs, search_dir)
    if entry.columns or entry.task_name is not None:
        rows = RewrittenRows(rows, partial(_with_fields, entry))
    return Source(name, rows, entry.weight)


def _with_fields(
    entry: MixtureSourceConfig, row: Mapping[str, Any], where: str
) -> dict[str, Any]:
    wanted = {to: field(row, of, where) for to, of in entry.columns.items()}
    named = {} if entry.task_name is None else {"task_name": entry.task_name}
    return {**row, **wanted, **named}
