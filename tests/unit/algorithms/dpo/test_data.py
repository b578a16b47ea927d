"""Validation of DPO: means over the pairs that count."""

import pytest
import torch

from nemo_rl.algorithms.dpo.config import DPOConfig
from nemo_rl.algorithms.dpo.data import validation_metrics, validation_rows
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def test_pairs_that_count():
    zeros = torch.zeros(6, 3)
    logprobs = zeros.clone()
    logprobs[0, 1], logprobs[3, 1] = 1.0, 1.0
    batch = BatchedDataDict(
        {
            "token_mask": torch.ones(6, 3),
            "sample_mask": torch.tensor([1.0, 1, 1, 1, 0, 1]),
            "reference_policy_logprobs": zeros,
        }
    )
    rows = validation_rows(batch, logprobs, DPOConfig(beta=2.0))
    assert [row["rewards_margin"] for row in rows] == [2.0, -2.0]
    metrics = validation_metrics(rows)
    assert metrics["accuracy"] == 0.5
    assert metrics["num_samples"] == 2
    assert metrics["loss"] == pytest.approx((0.126928 + 2.126928) / 2, rel=1e-5)
