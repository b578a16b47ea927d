"""Validation of fine-tuning: every token weighs the same over all batches."""

import math

import pytest
import torch

from nemo_rl.algorithms.sft.data import (
    perplexity,
    validation_metrics,
    validation_rows,
)
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def test_rows_and_their_means():
    batch = BatchedDataDict(
        {
            "token_mask": torch.tensor([[0.0, 1, 1], [0, 0, 1], [0, 1, 1]]),
            "sample_mask": torch.tensor([1.0, 1.0, 0.0]),
        }
    )
    logprobs = torch.tensor([[0.0, -1, -2], [0, -7, -3], [0, -9, -9]])
    rows = validation_rows(batch, logprobs)
    assert rows == [{"nll": 3.0, "tokens": 2.0}, {"nll": 3.0, "tokens": 1.0}]
    metrics = validation_metrics(rows)
    assert metrics["loss"] == pytest.approx(2.0)
    assert metrics["perplexity"] == pytest.approx(math.exp(2.0))
    assert (metrics["num_samples"], metrics["num_tokens"]) == (2.0, 3.0)


def test_perplexity_of_a_hopeless_model_is_infinite():
    assert perplexity(1e4) == math.inf
