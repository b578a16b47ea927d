"""The divergence's estimators, and the order of clamps and weights."""

from math import exp, inf, log

import pytest
import torch

from nemo_rl.algorithms.grpo.kl import kl_divergence, score_function_weight
from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig


def config(kind: str, **fields) -> ClippedPGLossConfig:
    return ClippedPGLossConfig(reference_policy_kl_type=kind, **fields)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_estimators_agree_where_policies_do(kind) -> None:
    """Exact mean over a distribution: k1 and k3 give the divergence, k2 about it."""
    cur = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ref = torch.tensor([0.49, 0.32, 0.19], dtype=torch.float64)
    mean = (cur * kl_divergence((ref / cur).log(), config(kind))).sum().item()
    exact = (cur * (cur / ref).log()).sum().item()
    assert mean == pytest.approx(exact, rel=1e-6 if kind != "k2" else 0.05)


def test_a_weighted_token_is_clamped_and_then_has_no_gradient() -> None:
    x = torch.tensor([-1.0, -1.0], requires_grad=True)
    weight = torch.tensor([4.0, 40.0], requires_grad=True)
    kl = kl_divergence(x, config("k1"), weight=weight)
    assert kl.tolist() == [4.0, 10.0]
    kl.sum().backward()
    assert x.grad.tolist() == [-4.0, 0.0]
    assert weight.grad.tolist() == [1.0, 0.0]


def test_the_input_is_clamped_before_it_is_exponentiated() -> None:
    x = torch.tensor([200.0], requires_grad=True)
    kl = kl_divergence(x, config("k3", kl_output_clamp_value=None))
    assert kl.item() == pytest.approx(exp(20) - 21)
    kl.sum().backward()
    assert x.grad.item() == 0.0


def test_score_function_weight() -> None:
    cur = torch.tensor([[log(0.5), 3.0, -1.0]], requires_grad=True)
    sampled = torch.tensor([[log(0.25), -inf, -inf]])
    mask = torch.tensor([[1.0, 0.0, 1.0]])
    weight = score_function_weight(cur, sampled, mask)
    # 0.5 / 0.25; masked; infinite counts as 0
    assert weight.tolist() == [[2.0, 1.0, 0.0]]
    weight.sum().backward()
    assert cur.grad.tolist() == [[2.0, 0.0, 0.0]]
