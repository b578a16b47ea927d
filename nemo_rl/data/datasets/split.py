"""Disjoint training and validation rows, by a seed alone; knows no field of a row."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from nemo_rl.data.datasets.views import ChosenRows
from nemo_rl.utils.exceptions import DataError
from nemo_rl.utils.seeding import derive_seed
from nemo_rl.utils.suggest import did_you_mean

SPLITS = ("train", "validation")
MAX_ENUMERATED = 1_000_000
"""Spaces up to this size are used whole; larger ones are sampled."""
DEFAULT_SAMPLE = 100_000
"""Training rows drawn from a larger space when no size is given."""


def split_numbers(
    total: int,
    split: str,
    *,
    num_validation: int,
    seed: int,
    size: int | None = None,
    excluded: frozenset[int] = frozenset(),
) -> list[int]:
    """Return the numbers of 0 .. total - 1 that belong to a split, in random order.

    Validation is drawn first and depends only on ``total``, ``num_validation`` and
    ``seed``, so no choice of training size can leak into it.

    Args:
        total: Size of the space.
        split: "train" or "validation".
        num_validation: Numbers held out of training.
        seed: Decides both splits.
        size: At most this many numbers; all of the split when None.
        excluded: Numbers in neither split.

    Raises:
        DataError: No such split, or nothing is left for training.
    """
    if split not in SPLITS:
        raise DataError(
            f"split={split!r}: expected {' or '.join(SPLITS)}."
            f"{did_you_mean(split, SPLITS)}"
        )
    if num_validation < 0 or num_validation + len(excluded) >= total:
        raise DataError(
            f"num_validation={num_validation} leaves nothing for training: there are "
            f"{total} different problems."
        )
    if size is not None and size < 1:
        raise DataError(f"size={size}: a split needs at least 1 row.")
    held_out = _draw(total, num_validation, excluded, seed, "validation")
    if split == "validation":
        return held_out[:size]
    taken = excluded | frozenset(held_out)
    rest = total - len(taken)
    wanted = rest if total <= MAX_ENUMERATED else min(rest, size or DEFAULT_SAMPLE)
    return _draw(total, wanted, taken, seed, "train")[:size]


def _draw(
    total: int, count: int, excluded: frozenset[int], seed: int, purpose: str
) -> list[int]:
    """Draw ``count`` different numbers that are not excluded."""
    generator = random.Random(derive_seed(seed, purpose))
    drawn = generator.sample(range(total), min(total, count + len(excluded)))
    return [number for number in drawn if number not in excluded][:count]


def hold_out(rows: Any, size: float, *, seed: int = 0) -> tuple[ChosenRows, ChosenRows]:
    """Divide rows into training and validation rows that share none.

    Which rows are held out depends on their number, ``size`` and ``seed`` alone. The
    same text in two rows may still fall on both sides.

    Args:
        rows: Anything with ``len()`` and ``[index]``.
        size: Rows to hold out: below 1 a fraction of them, else a number.
        seed: Decides which.

    Returns:
        Training rows and validation rows, each in their old order.

    Raises:
        DataError: One of the two would have no rows.
    """
    total = len(rows)
    count = round(size * total) if size < 1 else int(size)
    if not 0 < count < total:
        raise DataError(
            f"data.split_validation_size={size:g} of {total} rows would leave "
            f"{max(total - count, 0)} to train and {min(count, total)} to validate on."
        )
    generator = np.random.default_rng(derive_seed(seed, "held out"))
    held_out = np.zeros(total, dtype=bool)
    held_out[generator.permutation(total)[:count]] = True
    return (
        ChosenRows(rows, np.flatnonzero(~held_out)),
        ChosenRows(rows, np.flatnonzero(held_out)),
    )
