"""CpuFusedAdam against torch's optimizers, and the state layout that it exists for."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.backends.platform.cpu_adam import CpuFusedAdam


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (4,), (2, 2, 2)]
    return [torch.nn.Parameter(torch.randn(*s, generator=generator)) for s in shapes]


def steps(optimizer, params, count=5, lr_at=None):
    generator = torch.Generator().manual_seed(1)
    for step in range(count):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        if lr_at is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step)
        optimizer.step()


def assert_same(mine, theirs):
    for got, want in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("decoupled", "other"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)]
)
def test_equals_torch_over_several_steps(decoupled, other, weight_decay):
    fields = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6}
    mine, theirs = parameters(), parameters()
    schedule = [0.02, 0.01, 0.0, 0.03, 0.01].__getitem__
    optimizer = CpuFusedAdam(
        mine, weight_decay=weight_decay, adam_w_mode=decoupled, **fields
    )
    steps(optimizer, mine, lr_at=schedule)
    steps(other(theirs, weight_decay=weight_decay, **fields), theirs, lr_at=schedule)
    assert_same(mine, theirs)


def test_groups_have_their_own_settings():
    mine, theirs = parameters(), parameters()

    def groups(params):
        return [
            {"params": params[:1], "weight_decay": 0.5},
            {"params": params[1:], "weight_decay": 0.0, "lr": 0.1},
        ]

    steps(CpuFusedAdam(groups(mine), lr=0.01), mine)
    steps(torch.optim.AdamW(groups(theirs), lr=0.01), theirs)
    assert_same(mine, theirs)


def test_first_step_by_hand():
    """Bias-corrected moments of one gradient are g and g^2: a step of lr * sign."""
    param = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    param.grad = torch.tensor([0.5, -2.0])
    CpuFusedAdam([param], lr=0.1, eps=0.0, weight_decay=0.2).step()
    # Decayed first: 1 - 0.1 * 0.2 = 0.98.
    torch.testing.assert_close(param.data, torch.tensor([0.88, 1.08]))


def test_moments_without_bias_correction_are_refused():
    with pytest.raises(ValueError, match="always corrects the bias"):
        CpuFusedAdam(parameters(), bias_correction=False)


def test_parameter_without_gradient_stays():
    params = parameters()
    before = params[1].detach().clone()
    params[0].grad = torch.ones_like(params[0])
    optimizer = CpuFusedAdam(params, lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(params[1], before)
    assert params[1] not in optimizer.state


def test_state_layout_is_that_of_fused_adam():
    """``step`` lies in the group, a parameter's state is its two moments."""
    params = parameters()
    optimizer = CpuFusedAdam([{"params": params}, {"params": []}], lr=0.01)
    steps(optimizer, params, count=3)
    assert [group.get("step") for group in optimizer.param_groups] == [3, None]
    for param in params:
        assert set(optimizer.state[param]) == {"exp_avg", "exp_avg_sq"}
        assert optimizer.state[param]["exp_avg"].dtype == torch.float32
        assert optimizer.state[param]["exp_avg"].shape == param.shape


def test_state_dict_continues_bit_for_bit():
    whole, half = parameters(), parameters()
    straight = CpuFusedAdam(whole, lr=0.02, weight_decay=0.1)
    steps(straight, whole, count=2)
    first = CpuFusedAdam(half, lr=0.02, weight_decay=0.1)
    steps(first, half, count=2)
    second = CpuFusedAdam(half, lr=0.5)
    second.load_state_dict(first.state_dict())
    steps(straight, whole, count=3)
    steps(second, half, count=3)
    assert second.param_groups[0]["step"] == 5
    for got, want in zip(half, whole, strict=True):
        assert torch.equal(got, want)


def test_closure_is_refused():
    with pytest.raises(ValueError, match="takes no closure"):
        CpuFusedAdam(parameters()).step(lambda: 0.0)
