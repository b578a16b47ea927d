"""The rotation of queries and keys, against the formula and its gradient."""

import pytest
import torch

from nemo_rl.backends.platform import cpu_rotary


def angles(length: int, dim: int) -> torch.Tensor:
    base = torch.arange(length)[:, None] * (0.3 ** torch.arange(dim // 2))[None]
    return torch.cat((base, base), dim=-1)[:, None, None, :].float()


def formula(t: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
    left, right = t.chunk(2, dim=-1)
    return t * freqs.cos() + torch.cat((-right, left), dim=-1) * freqs.sin()


@pytest.mark.parametrize("gradient", [True, False])
def test_rotation_equals_the_formula(gradient):
    t = torch.randn(5, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    freqs = angles(5, 8)
    before = freqs.clone()
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(cpu_rotary.rotate(t, freqs), formula(t, freqs))
    assert torch.equal(freqs, before)


def test_gradient_is_that_of_the_formula():
    grads = []
    for function in (cpu_rotary.rotate, formula):
        t = torch.randn(
            4, 1, 2, 8, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        (function(t, angles(4, 8)) ** 3).sum().backward()
        grads.append(t.grad)
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-5)
