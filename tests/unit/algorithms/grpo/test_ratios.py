"""Ratios and weights against numbers worked out by hand."""

from __future__ import annotations

from math import exp, inf, log, nan, sqrt

import pytest
import torch

from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.ratios import (
    importance_weights,
    policy_ratio,
    sequence_ratio,
    token_ratio,
    where_valid,
)

MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def logs(*rows):
    return torch.tensor(
        [[log(value) if value > 0 else -inf for value in r] for r in rows]
    )


CUR = logs([0.4, 0.2, 0.9], [0.5, 0.1, 0.1], [0.3, 0.3, 0.3])
PREV = logs([0.1, 0.4, 0.1], [0.25, 0.7, 0.2], [0.6, 0.6, 0.6])


def test_token_ratio():
    want = torch.tensor([[4.0, 0.5, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(token_ratio(CUR, PREV, MASK), want)


def test_sequence_ratio_is_the_geometric_mean_over_the_response():
    # sqrt(4 * 0.5), 2, and nothing where nothing is valid
    root = sqrt(2)
    want = torch.tensor([[root, root, 1.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(sequence_ratio(CUR, PREV, MASK), want)
    config = ClippedPGLossConfig(
        sequence_level_importance_ratios=True, token_level_loss=False
    )
    torch.testing.assert_close(policy_ratio(CUR, PREV, MASK, config), want)


def test_gradient_of_the_sequence_ratio_is_that_of_gspo():
    """The mean over tokens of the ratio, against plain autograd of exp(mean)."""
    mask = MASK[:2]
    counts = mask.sum(-1)
    grads = []
    for tokenwise in (True, False):
        cur = CUR[:2].clone().requires_grad_(True)
        if tokenwise:
            per_row = (sequence_ratio(cur, PREV[:2], mask) * mask).sum(-1) / counts
        else:
            per_row = (((cur - PREV[:2]) * mask).sum(-1) / counts).exp()
        (per_row * torch.tensor([1.5, -3.0])).sum().backward()
        grads.append(cur.grad)
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0].abs().sum() > 0


@pytest.mark.parametrize("ratio", [token_ratio, sequence_ratio])
def test_ratios_stay_finite_and_ignore_what_is_masked(ratio):
    cur = torch.tensor([[-500.0, nan, inf]], requires_grad=True)
    prev = torch.tensor([[0.0, 1.0, nan]])
    mask = torch.tensor([[1.0, 0.0, 0.0]])
    got = ratio(cur, prev, mask)
    got.sum().backward()
    assert got[0].tolist() == pytest.approx([exp(-20), 1.0, 1.0])
    assert torch.isfinite(cur.grad).all()
    assert ratio(prev.nan_to_num(), cur.detach(), mask)[0, 0] == pytest.approx(exp(20))


def weights(prev, sampled, mask=None, **fields):
    config = ClippedPGLossConfig(use_importance_sampling_correction=True, **fields)
    mask = torch.ones_like(prev) if mask is None else torch.tensor(mask)
    return importance_weights(prev, sampled, mask, config)


HALVES = logs([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
SAMPLED = logs([0.5, 0.1, 0.8], [0.25, 0.5, 1.0])
# Weights 1, 5, 0.625 (geometric mean 1.46) and 2, 1, 0.5 (geometric mean 1).
BAND = {
    "truncated_importance_sampling_ratio_min": 0.6,
    "truncated_importance_sampling_ratio": 1.2,
}


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, [[1.0, 5.0, 0.625], [2.0, 1.0, 0.5]]),
        (
            {"truncated_importance_sampling_ratio": 1.5},
            [[1.0, 1.5, 0.625], [1.5, 1.0, 0.5]],
        ),
        (BAND, [[1.0, 1.2, 0.625], [1.2, 1.0, 0.6]]),
        (
            {**BAND, "truncated_importance_sampling_type": "icepop"},
            [[1.0, 0.0, 0.625], [0.0, 1.0, 0.0]],
        ),
        (
            {**BAND, "truncated_importance_sampling_type": "seq-mask-tis"},
            [[0.0, 0.0, 0.0], [2.0, 1.0, 0.5]],
        ),
        (
            {**BAND, "truncated_importance_sampling_type": None},
            [[1.0, 5.0, 0.625], [2.0, 1.0, 0.5]],
        ),
    ],
    ids=["free", "upper", "tis", "icepop", "seq-mask-tis", "none"],
)
def test_importance_weights(fields, want):
    got = weights(HALVES, SAMPLED, **fields)
    torch.testing.assert_close(got, torch.tensor(want))


@pytest.mark.parametrize(
    ("kind", "want"),
    [("tis", [1.2, 1.0]), ("icepop", [0.0, 1.0]), (None, [3.125, 1.0])],
)
def test_importance_weight_of_a_response_is_the_product(kind, want):
    fields = {"token_level_loss": False, "sequence_level_importance_ratios": True}
    got = weights(
        HALVES, SAMPLED, **BAND, truncated_importance_sampling_type=kind, **fields
    )
    torch.testing.assert_close(got, torch.tensor(want)[:, None].expand(2, 3))


def test_the_geometric_mean_is_over_valid_tokens():
    # Without the 5 the first response's mean is 0.79: inside.
    mask = [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    fields = {**BAND, "truncated_importance_sampling_type": "seq-mask-tis"}
    got = weights(HALVES, SAMPLED, mask, **fields)
    torch.testing.assert_close(got[0], torch.tensor([1.0, 1.0, 0.625]))


def test_a_long_response_is_not_masked_for_its_length():
    # Three weights of 1.1: their geometric mean is inside, their product is not.
    fields = {**BAND, "truncated_importance_sampling_type": "seq-mask-tis"}
    got = weights(logs([0.55] * 3), logs([0.5] * 3), **fields)
    torch.testing.assert_close(got, torch.full((1, 3), 1.1))


@pytest.mark.parametrize("kind", ["tis", "icepop", "seq-mask-tis", None])
@pytest.mark.parametrize("bad", [nan, -inf, -1000.0])
def test_a_weight_that_is_not_finite_counts_as_zero(kind, bad):
    sampled = SAMPLED.clone()
    sampled[0, 1] = bad
    got = weights(HALVES, sampled, **BAND, truncated_importance_sampling_type=kind)
    assert got[0, 1] == 0.0
    assert torch.isfinite(got).all()
    ordinary = weights(HALVES, SAMPLED, **BAND, truncated_importance_sampling_type=kind)
    assert torch.equal(got[1], ordinary[1])


def test_weights_have_no_gradient():
    prev = HALVES.clone().requires_grad_(True)
    assert not weights(prev, SAMPLED).requires_grad


def test_where_valid_stops_gradients_of_what_is_masked():
    values = torch.tensor([nan, 2.0], requires_grad=True)
    (where_valid(values, torch.tensor([0.0, 1.0])) * nan).sum().backward()
    assert values.grad[0] == 0.0
