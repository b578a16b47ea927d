"""Disjoint train and validation numbers out of a range, by a seed alone."""

from __future__ import annotations

import random

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
