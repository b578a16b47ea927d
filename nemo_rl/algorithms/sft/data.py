"""Validation of supervised fine-tuning. ``data/conversations.py`` reads the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nemo_rl.algorithms.sft.loss import row_likelihoods
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def validation_rows(batch: BatchedDataDict, logprobs: Tensor) -> list[dict[str, Any]]:
    """Negative log-likelihood (nats) and tokens of every row that counts.

    Args:
        batch: conversations [B, S].
        logprobs: [B, S] of the current weights.
    """
    sums, counts = row_likelihoods(batch, logprobs)
    return [
        {"nll": -float(total), "tokens": float(count)}
        for total, count, counts_in in zip(
            sums, counts, batch["sample_mask"].tolist(), strict=True
        )
        if counts_in
    ]


def validation_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Loss per token over all rows, as in training, and its exponential."""
    tokens = sum(row["tokens"] for row in rows)
    loss = sum(row["nll"] for row in rows) / max(tokens, 1.0)
    return {
        "loss": loss,
        "perplexity": perplexity(loss),
        "num_samples": float(len(rows)),
        "num_tokens": tokens,
    }


def perplexity(loss: float) -> float:
    """exp(loss per token); infinite where that is no longer a float."""
    return math.exp(loss) if loss < 700 else math.inf
