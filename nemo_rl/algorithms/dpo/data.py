"""Validation of DPO. ``data/preferences.py`` reads the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nemo_rl.algorithms.dpo.config import DPOConfig
from nemo_rl.algorithms.dpo.loss import pair_values
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def validation_rows(
    batch: BatchedDataDict, logprobs: Tensor, config: DPOConfig
) -> list[dict[str, Any]]:
    """Loss and metrics of every pair that counts.

    Args:
        batch: pairs [2 P, S] with ``reference_policy_logprobs``.
        logprobs: [2 P, S] of the current weights.
        config: the dpo section.
    """
    values = pair_values(batch, logprobs, config)
    counts = batch["sample_mask"].view(-1, 2).prod(-1).tolist()
    columns = {name: value.tolist() for name, value in values.items()}
    return [
        {name: column[pair] for name, column in columns.items()}
        for pair, count in enumerate(counts)
        if count
    ]


def validation_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over the pairs."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return {**means, "num_samples": float(len(rows))}
