"""RMSNorm against torch's own, values and gradients."""

import pytest
import torch

from nemo_rl.backends.platform.cpu_norm import CpuRMSNorm


def norms(eps: float | None) -> tuple[CpuRMSNorm, torch.nn.RMSNorm]:
    torch.manual_seed(0)
    pair = CpuRMSNorm(24, eps=eps), torch.nn.RMSNorm(24, eps=eps)
    weight = torch.randn(24)
    for norm in pair:
        norm.weight.data.copy_(weight)
    return pair


@pytest.mark.parametrize("eps", [1e-6, 0.5, None])
@pytest.mark.parametrize("gradient", [True, False])
def test_values_equal_torchs(eps, gradient):
    ours, theirs = norms(eps)
    x = torch.randn(5, 2, 24)
    x[0, 0] = 0.0
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(ours(x), theirs(x))


def test_gradients_equal_torchs():
    grads = []
    for norm in norms(1e-6):
        x = torch.randn(
            5, 2, 24, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        (norm(x) ** 3).sum().backward()
        grads.append((x.grad, norm.weight.grad))
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-5)


def test_bf16_is_left_to_torch():
    ours, theirs = norms(1e-6)
    x = torch.randn(3, 24).bfloat16()
    assert torch.equal(ours.bfloat16()(x), theirs.bfloat16()(x))
