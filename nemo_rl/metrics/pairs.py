"""Numbers over pairs of answers: shares of a loss, rows of a validation, means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def pair_shares(
    values: Mapping[str, Tensor], batch: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """A micro-batch's share of the loss and metrics of the global batch's pairs.

    Args:
        values: name to [P]; ``loss`` among them.
        batch: ``sample_mask`` [2 P] and ``global_valid_seqs``, the rows that count.

    Returns:
        The loss, and the other values without gradient.
    """
    # Both rows of a pair count, or neither does.
    counts = batch["sample_mask"].view(-1, 2).prod(-1)
    pairs = batch["global_valid_seqs"].clamp(min=2) / 2
    shares = {
        name: torch.where(counts > 0, value, 0.0).sum() / pairs
        for name, value in values.items()
    }
    loss = shares.pop("loss")
    return loss, {name: share.detach() for name, share in shares.items()}


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
