"""Adam for the CPU with the state layout of Apex's and TE's FusedAdam.

Megatron's distributed optimizer saves ``step`` per parameter group, as FusedAdam keeps
it; torch keeps it per tensor. With this layout the CPU takes the same save and load
branch as a GPU, so checkpoints written by one are read by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import adam, adamw


class CpuFusedAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) or AdamW (Loshchilov and Hutter, 2019) in place.

    Args:
        params: fp32 parameters or groups of them.
        lr: learning rate.
        bias_correction: divide the moments by ``1 - beta**step``; must be on.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        adam_w_mode: decoupled weight decay; False adds it to the gradient.
        weight_decay: decay coefficient.
    """

    def __init__(  # noqa: PLR0913 - the constructor that megatron calls
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adam_w_mode: bool = True,
        weight_decay: float = 0.0,
        **_: Any,
    ) -> None:
        if not bias_correction:
            raise ValueError("CpuFusedAdam always corrects the bias of the moments")
        self.adam_w_mode = adam_w_mode
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(  # pyrefly: ignore[bad-override]
        self, closure: Callable[[], float] | None = None
    ) -> None:
        """Update every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("CpuFusedAdam takes no closure")
        for group in self.param_groups:
            if group["params"]:
                self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        group["step"] = group.get("step", 0) + 1
        params = [p for p in group["params"] if p.grad is not None]
        for param in params:
            if not self.state[param]:
                self.state[param]["exp_avg"] = torch.zeros_like(param.data)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param.data)
        update = adamw.adamw if self.adam_w_mode else adam.adam
        update(
            params,
            [p.grad for p in params],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            max_exp_avg_sqs=[],
            # torch counts the step itself, in a tensor for each parameter.
            state_steps=[torch.tensor(group["step"] - 1.0) for _ in params],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )
