"""RMSNorm for the CPU, whose gradient is written out; knows tensors alone.

torch has no CPU kernel for it and records six operations per call. ``cpu_shim`` has
megatron-core build this class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _scale(x: Tensor, eps: float) -> Tensor:
    """[..., 1]: one over the root mean square of the last dimension."""
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return squares.div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """y = n w with n = x r;  dx = r (dy w - n mean(dy w n)),  dw = sum(dy n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = (grad * normed).flatten(0, -2)
        mean = torch.mv(product, weight).div_(len(weight)).view(scale.shape)
        grad_x = (grad * weight).sub_(normed.mul_(mean)).mul_(scale)
        return grad_x, product.sum(0), None


class CpuRMSNorm(torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` with a weight, over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., H]; anything but fp32 is torch's own affair."""
        if x.dtype is not torch.float32 or self.weight.dtype is not torch.float32:
            return super().forward(x)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        if torch.is_grad_enabled():
            return _RMSNorm.apply(x, self.weight, eps)
        return (x * _scale(x, eps)).mul_(self.weight)
