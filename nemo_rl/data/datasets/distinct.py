"""Disjoint train and validation items out of a stream, by the stream alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from nemo_rl.data.datasets.split import SPLITS
from nemo_rl.utils.exceptions import DataError
from nemo_rl.utils.suggest import did_you_mean

Item = TypeVar("Item")

TRIES_PER_ITEM = 20
"""Items looked at per item wanted, before a small space counts as used up."""


def check_split(split: str, *, size: int, num_validation: int) -> int:
    """Return how many distinct items of the stream the split needs.

    Args:
        split: "train" or "validation".
        size: Training items.
        num_validation: Validation items, which stand first in the stream. So they do
            not depend on the training size.

    Raises:
        DataError: No such split, or a size below 1.
    """
    if split not in SPLITS:
        raise DataError(
            f"split={split!r}: expected {' or '.join(SPLITS)}."
            f"{did_you_mean(split, SPLITS)}"
        )
    if size < 1 or num_validation < 0 or (split != "train" and not num_validation):
        raise DataError(
            f"size={size}, num_validation={num_validation}: a split needs at least 1 "
            "row."
        )
    return num_validation + (size if split == "train" else 0)


def distinct(
    stream: Iterable[Item], wanted: int, *, key: Callable[[Item], Any]
) -> list[Item]:
    """Return the first ``wanted`` items of different keys, or fewer if there are none.

    Args:
        stream: Items; at most ``TRIES_PER_ITEM`` times as many as wanted are taken.
        wanted: Number of items.
        key: What may not occur twice.
    """
    found: dict[Any, Item] = {}
    for number, item in enumerate(stream):
        if len(found) == wanted or number == TRIES_PER_ITEM * wanted:
            break
        found.setdefault(key(item), item)
    return list(found.values())


def part_of(
    items: list[Item], split: str, *, num_validation: int, what: str
) -> list[Item]:
    """Return the split's part of the stream's first items.

    Raises:
        DataError: There are too few different items for this validation split.
    """
    part = items[num_validation:] if split == "train" else items[:num_validation]
    if not part or (split != "train" and len(part) < num_validation):
        raise DataError(
            f"num_validation={num_validation} leaves nothing for training: {what} has "
            f"only {len(items)} different problems."
        )
    return part
