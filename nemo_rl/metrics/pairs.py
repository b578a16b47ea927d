"""Numbers over pairs of answers: rows of a validation and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def pair_rows(
    values: Mapping[str, Tensor], sample_mask: Tensor
) -> list[dict[str, Any]]:
    """The values of every pair of which both rows count.

    Args:
        values: name to [P].
        sample_mask: [2 P]; rows 2 i and 2 i + 1 are a pair.
    """
    counts = sample_mask.view(-1, 2).prod(-1).tolist()
    columns = {name: value.tolist() for name, value in values.items()}
    return [
        {name: column[pair] for name, column in columns.items()}
        for pair, count in enumerate(counts)
        if count
    ]


def row_means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every value over the rows, and ``num_samples``."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return {**means, "num_samples": float(len(rows))}
