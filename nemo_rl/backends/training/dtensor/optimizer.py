"""AdamW over a divided model, and the norm of its gradient; knows no loss.

The weights that AdamW moves are the fp32 ones that FSDP divides, whatever precision
the passes run in.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from nemo_rl.backends.training.dtensor.model import DP, TP, ShardedModel, local
from nemo_rl.config.policy import PolicyConfig


def build_optimizer(model: ShardedModel, policy: PolicyConfig) -> torch.optim.AdamW:
    """AdamW with decoupled weight decay; biases and norms are not decayed."""
    kwargs = policy.optimizer.kwargs
    # One group per mesh as well: torch computes with a group's tensors at once, and
    # those of different meshes cannot be mixed.
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in model.module.parameters():
        key = (parameter.dim() > 1, _over_tp(parameter))
        groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": kwargs.weight_decay if decayed else 0.0}
            for (decayed, _), group in groups.items()
        ],
        lr=kwargs.lr,
        betas=kwargs.betas,
        eps=kwargs.eps,
    )


def _over_tp(parameter: Tensor) -> bool:
    """Whether tensor-parallel ranks hold different parts of a parameter."""
    if not isinstance(parameter, DTensor):
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    return TP in names and parameter.placements[names.index(TP)].is_shard()


@torch.no_grad()
def finish_gradients(model: ShardedModel, max_norm: float | None) -> float:
    """Sum what tensor-parallel ranks hold in parts, measure the norm, clip.

    A collective over all ranks.

    Args:
        model: after the backward passes of an update.
        max_norm: bound of the global L2 norm; None or 0 only measures it.

    Returns:
        The norm before clipping.
    """
    parameters = dict(model.module.named_parameters())
    for name in sorted(model.summed):
        _all_reduce(local(parameters[name].grad), model.tp_group)
    gradients = [
        (local(p.grad), _over_tp(p)) for p in parameters.values() if p.grad is not None
    ]
    squares = torch.zeros(2, device=model.device)
    for gradient, over_tp in gradients:
        squares[int(over_tp)] += gradient.float().square().sum().to(model.device)
    dist.all_reduce(squares, group=model.mesh[DP].get_group())
    if model.tp_group is not None:
        dist.all_reduce(squares[1:], group=model.tp_group)
    norm = float(squares.sum().sqrt())
    # As Megatron does it: the small number keeps a gradient of zero from dividing.
    scale = (max_norm or float("inf")) / (norm + 1e-6)
    if scale < 1.0:
        for gradient, _ in gradients:
            gradient.mul_(scale)
    return norm


def _all_reduce(part: Tensor, group: Any) -> None:
    if part.is_cuda or dist.get_backend(group) != "nccl":
        dist.all_reduce(part, group=group)
        return
    moved = part.cuda()
    dist.all_reduce(moved, group=group)
    part.copy_(moved)
