"""Adam for the CPU with the state layout of Apex's and TE's FusedAdam.

Megatron's distributed optimizer saves ``step`` per parameter group, as FusedAdam keeps
it; torch keeps it per tensor. With this layout the CPU takes the same save and load
branch as a GPU, so checkpoints written by one are read by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class CpuFusedAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, 2015) or AdamW (Loshchilov and Hutter, 2019) in place.

    Args:
        params: fp32 parameters or groups of them.
        lr: learning rate.
        bias_correction: divide the moments by ``1 - beta**step``.
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
        self.adam_w_mode = adam_w_mode
        defaults = {
            "lr": lr,
            "bias_correction": bias_correction,
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
        beta1, beta2 = group["betas"]
        corrected = group["bias_correction"]
        correction1 = 1 - beta1 ** group["step"] if corrected else 1.0
        correction2 = 1 - beta2 ** group["step"] if corrected else 1.0
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for param in params:
            if not self.state[param]:
                self.state[param]["exp_avg"] = torch.zeros_like(param.data)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param.data)
        grads = [p.grad for p in params]
        first = [self.state[p]["exp_avg"] for p in params]
        second = [self.state[p]["exp_avg_sq"] for p in params]
        decay = group["weight_decay"]
        if decay and self.adam_w_mode:
            torch._foreach_mul_(params, 1 - group["lr"] * decay)
        elif decay:
            grads = torch._foreach_add(grads, params, alpha=decay)
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - beta2)
        denominator = torch._foreach_div(second, correction2)
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_addcdiv_(
            params, first, denominator, value=-group["lr"] / correction1
        )
