"""The likelihood loss against numbers worked out by hand."""

import pytest
import torch

from nemo_rl.algorithms.sft.loss import NLLLossFn
from nemo_rl.backends.training.base import ModelOutput


def batch(mask, counts, tokens):
    return {
        "token_mask": torch.tensor(mask),
        "sample_mask": torch.tensor(counts),
        "global_valid_tokens": torch.tensor(tokens),
    }


LOGPROBS = torch.tensor([[0.0, -1.0, -2.0, -4.0], [0.0, -3.0, -0.5, -9.0]])


def test_mean_over_the_tokens_of_the_global_batch():
    # Tokens 2 and 3 of row 0 and token 2 of row 1: (2 + 4 + 0.5) / 3; column 0 never.
    masks = batch([[1.0, 0, 1, 1], [0, 0, 1, 0]], [1.0, 1.0], 3.0)
    loss, _ = NLLLossFn()(masks, ModelOutput(LOGPROBS))
    assert loss.item() == pytest.approx(6.5 / 3)


def test_shares_of_micro_batches_add_up():
    masks = batch([[0.0, 0, 1, 1], [0, 0, 1, 0]], [1.0, 1.0], 3.0)
    shares = [
        NLLLossFn()(
            {k: v[row : row + 1] if v.dim() else v for k, v in masks.items()},
            ModelOutput(LOGPROBS[row : row + 1]),
        )[0]
        for row in range(2)
    ]
    assert sum(shares).item() == pytest.approx(6.5 / 3)


def test_rows_that_do_not_count_and_masked_nan_change_nothing():
    logprobs = LOGPROBS.clone().requires_grad_()
    broken = torch.where(torch.tensor([[0.0, 1, 0, 0]] * 2) > 0, torch.nan, logprobs)
    masks = batch([[0.0, 0, 1, 1], [0, 0, 1, 0]], [1.0, 0.0], 2.0)
    loss, _ = NLLLossFn()(masks, ModelOutput(broken))
    loss.backward()
    assert loss.item() == pytest.approx(3.0)
    assert logprobs.grad.tolist() == [[0, 0, -0.5, -0.5], [0, 0, 0, 0]]


def test_nothing_to_learn_is_zero_and_finite():
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, _ = NLLLossFn()(batch([[0.0] * 4] * 2, [0.0] * 2, 0.0), ModelOutput(logprobs))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logprobs.grad).all()
