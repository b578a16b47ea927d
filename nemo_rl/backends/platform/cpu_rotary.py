"""Rotary position embedding for the CPU: three passes over the tensor, not eight.

Knows tensors alone. ``cpu_shim`` puts ``rotate`` in the place of Megatron's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _turn(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``t * cos + swapped * sin``, where ``swapped`` exchanges the halves of ``t``."""
    left, right = t.chunk(2, dim=-1)
    return (t * cos).addcmul_(torch.cat((right, left), dim=-1), sin)


class _Rotate(torch.autograd.Function):
    """A rotation; its gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turn(t, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def rotate(t: Tensor, freqs: Tensor) -> Tensor:
    """Megatron's rotation of whole heads, of halves against each other.

    Args:
        t: [S, B, heads, D].
        freqs: [S, 1, 1, D] angles, the second half of D equal to the first.

    Returns:
        [S, B, heads, D].
    """
    cos, sin = freqs.cos().to(t.dtype), freqs.sin().to(t.dtype)
    half = sin.shape[-1] // 2
    sin[..., :half].neg_()
    if torch.is_grad_enabled():
        return _Rotate.apply(t, cos, sin)
    return _turn(t, cos, sin)
