"""Surrogates and averages against numbers worked out by hand."""

import pytest
import torch

from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.surrogates import (
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
)

RATIO = torch.tensor([[1.5, 0.5, 1.5, 0.5]])
ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -2.0]])


def test_clipped_surrogate() -> None:
    got = clipped_surrogate(RATIO, ADVANTAGES, ClippedPGLossConfig())
    # -min(1.5, 1.2), -min(0.5, 0.8), -min(-1.5, -1.2), -min(-1, -1.6)
    torch.testing.assert_close(got, torch.tensor([[-1.2, -0.5, 1.5, 1.6]]))


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    ratio = RATIO.clone().requires_grad_(True)
    cur = torch.tensor([[-1.0, -2.0, -3.0, -4.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    config = ClippedPGLossConfig(use_cispo=True, ratio_clip_min=0.4)
    got = cispo_surrogate(cur, ratio, ADVANTAGES, mask, config)
    # weights 1.2, 0.6, 1.2
    torch.testing.assert_close(got, torch.tensor([[1.2, 1.2, -3.6, 0.0]]))
    got.sum().backward()
    torch.testing.assert_close(cur.grad, torch.tensor([[-1.2, -0.6, 1.2, 0.0]]))
    assert ratio.grad is None


def test_cispo_without_a_lower_bound() -> None:
    config = ClippedPGLossConfig(use_cispo=True, ratio_clip_min=1.0)
    got = cispo_surrogate(
        torch.tensor([[-1.0]]),
        torch.tensor([[0.01]]),
        torch.tensor([[2.0]]),
        torch.ones(1, 1),
        config,
    )
    assert got.item() == pytest.approx(0.02)


LOSS = torch.tensor([[1.0, 2.0, 30.0], [4.0, 50.0, 60.0], [7.0, 8.0, 9.0]])
MASK = [[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]
BATCH = {
    "token_mask": torch.tensor(MASK),
    "sample_mask": torch.tensor([1.0, 1.0, 0.0]),
    "global_valid_tokens": torch.tensor(3.0),
    "global_valid_seqs": torch.tensor(2.0),
}


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, (1.0 + 2.0 + 4.0) / 3),
        ({"token_level_loss": False}, (1.5 + 4.0) / 2),
        (
            {"token_level_loss": False, "constant_response_length": 10},
            (3.0 + 4.0) / 10 / 2,
        ),
    ],
    ids=["tokens", "responses", "constant"],
)
def test_averages(fields, want) -> None:
    got = aggregate(LOSS, BATCH, ClippedPGLossConfig(**fields))
    assert got.item() == pytest.approx(want)


def test_a_token_of_a_long_response_weighs_as_much_under_a_constant_length() -> None:
    """The bias that Dr. GRPO removes: slopes of a short and of a long response."""
    slopes = {}
    for constant in (None, 10):
        loss = LOSS.clone().requires_grad_(True)
        fields = {"token_level_loss": False, "constant_response_length": constant}
        aggregate(loss, BATCH, ClippedPGLossConfig(**fields)).backward()
        slopes[constant] = (loss.grad[0, 0].item(), loss.grad[1, 0].item())
    assert slopes[None] == pytest.approx((1 / 4, 1 / 2))
    assert slopes[10] == pytest.approx((1 / 20, 1 / 20))
