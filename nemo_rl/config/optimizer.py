"""The policy.optimizer and policy.scheduler sections; knows no optimizer library."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig
from nemo_rl.utils.suggest import did_you_mean

SCHEDULES = {
    "LinearLR": ("start_factor", "end_factor", "total_iters"),
    "ConstantLR": ("factor", "total_iters"),
    "CosineAnnealingLR": ("T_max", "eta_min"),
}
"""Schedule of torch.optim.lr_scheduler -> its arguments; T_max has no default."""
_LARGEST = {"start_factor": 1.0, "end_factor": 1.0, "factor": 1.0}
_STEPS = ("total_iters", "T_max")


class OptimizerKwargs(BaseConfig):
    """Arguments of Adam with decoupled weight decay."""

    lr: float = Field(1e-6, ge=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay; biases and norms are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    foreach: bool | None = None
    """Accepted for torch.optim recipes; Megatron's optimizer decides itself."""
    fused: bool | None = None
    """Accepted for torch.optim recipes; Megatron's optimizer decides itself."""

    @model_validator(mode="after")
    def _betas_below_one(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"betas={list(self.betas)} must both lie in [0, 1), e.g. [0.9, 0.999]."
            )
        return self


class OptimizerConfig(BaseConfig):
    """Which optimizer, and its arguments."""

    name: Literal["torch.optim.AdamW", "AdamW", "adamw", "adam"] = "torch.optim.AdamW"
    """AdamW under any of its names; Megatron's distributed Adam carries it out."""
    kwargs: OptimizerKwargs = Field(default_factory=OptimizerKwargs)
    """Learning rate, weight decay, betas, eps."""


class SchedulerConfig(BaseConfig):
    """One phase of the learning rate, or the steps at which the next phase begins.

    The phases of a list follow one another at the `milestones` of its last entry,
    as in torch.optim.lr_scheduler.SequentialLR; each counts from 0 again. Without
    milestones the phases multiply, as in ChainedScheduler; a cosine can be multiplied
    only by a warm-up that ends at 1.
    """

    name: str | None = None
    """torch.optim.lr_scheduler.LinearLR, ConstantLR or CosineAnnealingLR."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that schedule."""
    milestones: list[int] | None = None
    """Steps at which the next phase begins; one fewer than there are phases."""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.name is None) == (self.milestones is None):
            raise ValueError("give either name (with kwargs) or milestones.")
        if self.name is not None and self.kind not in SCHEDULES:
            raise ValueError(
                f"name={self.name!r} is not one of "
                f"{', '.join('torch.optim.lr_scheduler.' + s for s in SCHEDULES)}."
            )
        for name in self.kwargs if self.name is not None else ():
            known = SCHEDULES[self.kind]
            if name not in known:
                raise ValueError(
                    f"{name} is not an argument of {self.kind}."
                    f"{did_you_mean(name, known)}"
                )
            self._check_argument(name, self.kwargs[name])
        if self.kind == "CosineAnnealingLR" and "T_max" not in self.kwargs:
            raise ValueError(
                "CosineAnnealingLR needs kwargs.T_max, the steps of its descent."
            )
        if self.milestones is not None and (
            self.kwargs or sorted(set(self.milestones)) != self.milestones
        ):
            raise ValueError(
                f"milestones={self.milestones} must ascend and stand without kwargs."
            )
        return self

    def _check_argument(self, name: str, value: Any) -> None:
        steps = name in _STEPS
        least = int(steps and self.kind != "ConstantLR")
        most = _LARGEST.get(name, float("inf"))
        expected = int if steps else (int, float)
        if isinstance(value, bool) or not isinstance(value, expected):
            kind = "a whole number" if steps else "a number"
            raise ValueError(f"{self.kind}: {name}={value!r} must be {kind}.")
        if not least <= value <= most:
            bounds = f"at least {least}" if most > 1 else "from 0 to 1"
            raise ValueError(f"{self.kind}: {name}={value} must be {bounds}.")

    @property
    def kind(self) -> str:
        """The schedule's class name, "" for milestones."""
        return (self.name or "").rpartition(".")[2]


class MegatronOptimizerConfig(BaseConfig):
    """policy.megatron_cfg.optimizer: what is set here wins over policy.optimizer."""

    optimizer: str = "adam"
    """Always "adam"."""
    lr: float | None = Field(None, ge=0)
    """Peak learning rate."""
    min_lr: float | None = Field(None, ge=0)
    """Where a decaying schedule ends."""
    weight_decay: float | None = Field(None, ge=0)
    """Decoupled weight decay."""
    bf16: bool | None = None
    """Accepted; policy.precision decides."""
    fp16: bool | None = None
    """Not available."""
    params_dtype: str | None = None
    """Accepted; main weights are float32."""
    adam_beta1: float | None = Field(None, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float | None = Field(None, ge=0, lt=1)
    """Decay of the second moment."""
    adam_eps: float | None = Field(None, gt=0)
    """Added to the denominator."""
    sgd_momentum: float | None = None
    """Accepted; there is no SGD."""
    use_distributed_optimizer: bool | None = None
    """Overrides megatron_cfg.use_distributed_optimizer."""
    use_precision_aware_optimizer: bool | None = None
    """Accepted; the state is float32."""
    clip_grad: float | None = Field(None, ge=0)
    """Overrides policy.max_grad_norm."""
    optimizer_cpu_offload: bool = False
    """Not available."""
    optimizer_offload_fraction: float = 0.0
    """Accepted; without optimizer_cpu_offload it has no effect."""


class MegatronSchedulerConfig(BaseConfig):
    """policy.megatron_cfg.scheduler: translated into policy.scheduler if set."""

    start_weight_decay: float | None = None
    """Accepted if equal to the optimizer's weight decay."""
    end_weight_decay: float | None = None
    """Accepted if equal to the optimizer's weight decay."""
    weight_decay_incr_style: Literal["constant"] = "constant"
    """Weight decay does not change over the run."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after the warm-up."""
    lr_decay_iters: int | None = Field(None, ge=1)
    """Step at which the decay ends; required for linear and cosine."""
    lr_warmup_iters: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    lr_warmup_init: float = Field(0.0, ge=0)
    """Learning rate of the first step of the warm-up."""

    @model_validator(mode="after")
    def _decay_has_an_end(self) -> Self:
        if self.lr_decay_style != "constant" and self.lr_decay_iters is None:
            raise ValueError(
                f"lr_decay_style={self.lr_decay_style!r} needs lr_decay_iters."
            )
        return self
