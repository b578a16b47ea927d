"""Linear layers for the CPU: the faster matrix product, and no more Python than needed.

torch multiplies fp32 matrices with MKL, which keeps to AVX2 on CPUs of other makers;
oneDNN, in the same wheel, uses AVX-512 where there is one, and is the slower of the two
where there is none. Knows tensors and one process group. ``cpu_shim`` puts ``linear``
in the place of Megatron's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

_WORTH_ONEDNN = 2**20
"""Multiplications of a product from which on oneDNN's call overhead is paid back."""

_USE_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


def matmul(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """``left @ right.T + bias``.

    Args:
        left: [M, K].
        right: [N, K], any strides.
        bias: [N] or None.

    Returns:
        [M, N].
    """
    if (
        _USE_ONEDNN
        and left.dtype is torch.float32
        and left.numel() * right.shape[0] >= _WORTH_ONEDNN
    ):
        return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return functional.linear(left, right, bias)


class _Linear(torch.autograd.Function):
    """``x @ weight.T + bias``; the gradient of ``x`` is summed over ``group``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.group = bias is not None, group
        return matmul(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = matmul(grad, weight.t())
        if ctx.group is not None:
            dist.all_reduce(grad_x, group=ctx.group)
        # oneDNN copies its first argument if it is transposed: the smaller one.
        if grad.shape[1] < x.shape[1]:
            grad_weight = matmul(grad.t(), x.t())
        else:
            grad_weight = matmul(x.t(), grad.t()).t()
        grad_bias = grad.sum(0) if ctx.has_bias else None
        return grad_x, grad_weight, grad_bias, None


def linear(  # noqa: PLR0913 - the arguments that megatron passes
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gradient_accumulation_fusion: bool,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    grad_output_buffer: Any = None,
    wgrad_deferral_limit: int | None = 0,
    async_grad_allreduce: bool | None = None,
    tp_group: Any = None,
) -> Tensor:
    """``linear_with_grad_accumulation_and_async_allreduce`` of megatron-core.

    Args:
        input: [..., K].
        weight: [N, K].
        bias: [N] or None.
        gradient_accumulation_fusion: a CUDA kernel; must be off.
        allreduce_dgrad: sum the gradient of the input over ``tp_group``.
        sequence_parallel: must be off, as everywhere in the ``torch`` layer spec.
        grad_output_buffer: for deferred embedding gradients; must be None.
        wgrad_deferral_limit: belongs to ``grad_output_buffer``.
        async_grad_allreduce: ignored by Megatron too.
        tp_group: tensor-parallel group.

    Returns:
        [..., N].
    """
    if gradient_accumulation_fusion or sequence_parallel or grad_output_buffer:
        raise NotImplementedError(
            "gradient_accumulation_fusion, sequence_parallel and deferred embedding "
            "gradients need a GPU"
        )
    del wgrad_deferral_limit, async_grad_allreduce
    rows = input.reshape(-1, input.shape[-1])
    if torch.is_grad_enabled():
        out = _Linear.apply(rows, weight, bias, tp_group if allreduce_dgrad else None)
    else:
        out = matmul(rows, weight, bias)
    return out.view(*input.shape[:-1], out.shape[-1])
