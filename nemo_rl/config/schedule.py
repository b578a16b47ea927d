"""The learning rate as plain arithmetic: phases in, one number per step out.

It knows the formulas of torch.optim.lr_scheduler, not torch: a Megatron optimizer
is told its learning rate before every step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from nemo_rl.config.optimizer import (
    MegatronSchedulerConfig,
    OptimizerKwargs,
    SchedulerConfig,
)

_LR = "torch.optim.lr_scheduler."


def learning_rate_at(
    step: int, lr: float, scheduler: Sequence[SchedulerConfig] | None
) -> float:
    """Return the learning rate of an update.

    Args:
        step: number of updates already made (0 before the first).
        lr: peak learning rate, policy.optimizer.kwargs.lr.
        scheduler: policy.scheduler; None keeps `lr`.
    """
    phases, milestones = _split(scheduler)
    if not phases:
        return lr
    if not milestones:
        return lr * math.prod(_factor(phase, step, lr) for phase in phases)
    index = sum(step >= milestone for milestone in milestones)
    start = milestones[index - 1] if index else 0
    return lr * _factor(phases[index], step - start, lr)


def _split(
    scheduler: Sequence[SchedulerConfig] | None,
) -> tuple[list[SchedulerConfig], list[int]]:
    phases = [entry for entry in scheduler or () if entry.name is not None]
    milestones = [m for entry in scheduler or () for m in entry.milestones or ()]
    return phases, milestones


def check_phases(scheduler: Sequence[SchedulerConfig] | None) -> None:
    """Check that the phases can follow one another, or be multiplied.

    Raises:
        ValueError: there are milestones, and not one for every change of phase; or
            the product is not what torch's ChainedScheduler gives.
    """
    phases, milestones = _split(scheduler)
    if milestones and len(milestones) != len(phases) - 1:
        raise ValueError(
            f"has {len(milestones)} milestones for {len(phases)} phases; expected "
            f"{max(0, len(phases) - 1)}."
        )
    cosines = [phase for phase in phases if phase.kind == "CosineAnnealingLR"]
    if cosines and len(phases) > 1 and not milestones:
        others = [phase for phase in phases if phase not in cosines]
        end = cosines[0].kwargs["T_max"]
        if (
            len(cosines) > 1
            or cosines[0].kwargs.get("eta_min", 0) > 0
            or any(phase.kwargs.get("end_factor", 1) != 1 for phase in others)
            or any(phase.kwargs.get("total_iters", 5) > end for phase in others)
        ):
            # torch computes each rate from the last one, and adds eta_min to it.
            raise ValueError(
                "multiplies a cosine by phases with which it is no product: only a "
                "warm-up that ends at 1 within T_max, with eta_min=0. To let the "
                "phases follow one another, add an entry with milestones."
            )


def _factor(phase: SchedulerConfig, step: int, lr: float) -> float:
    """Return what a phase multiplies the peak learning rate by."""
    kwargs: dict[str, Any] = phase.kwargs
    if phase.kind == "LinearLR":
        start = kwargs.get("start_factor", 1 / 3)
        end = kwargs.get("end_factor", 1.0)
        return start + (end - start) * min(1.0, step / kwargs.get("total_iters", 5))
    if phase.kind == "ConstantLR":
        before = step < kwargs.get("total_iters", 5)
        return kwargs.get("factor", 1 / 3) if before else 1.0
    floor = kwargs.get("eta_min", 0.0) / lr if lr else 0.0
    return floor + (1 - floor) * (1 + math.cos(math.pi * step / kwargs["T_max"])) / 2


def phases_from_megatron(
    scheduler: MegatronSchedulerConfig, kwargs: OptimizerKwargs, min_lr: float
) -> list[SchedulerConfig] | None:
    """Translate Megatron's warm-up and decay into policy.scheduler.

    Raises:
        ValueError: the weight decay changes over the run, or the decay ends before
            the warm-up does.
    """
    _check_weight_decay(scheduler, kwargs)
    if not kwargs.lr:
        return None
    warmup = scheduler.lr_warmup_iters
    phases: list[dict[str, Any]] = []
    if warmup:
        phases.append(
            {
                "name": _LR + "LinearLR",
                "kwargs": {
                    "start_factor": scheduler.lr_warmup_init / kwargs.lr,
                    "end_factor": 1.0,
                    "total_iters": warmup,
                },
            }
        )
    floor = min_lr / kwargs.lr
    steps = (scheduler.lr_decay_iters or 0) - warmup
    if scheduler.lr_decay_style == "constant":
        if not warmup:
            return None
        end = {"name": _LR + "ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 0}}
        phases.append(end)
    elif steps < 1:
        raise ValueError(
            f"megatron_cfg.scheduler.lr_decay_iters={scheduler.lr_decay_iters} must "
            f"exceed lr_warmup_iters={warmup}."
        )
    elif scheduler.lr_decay_style == "linear":
        ramp = {"start_factor": 1.0, "end_factor": floor, "total_iters": steps}
        phases.append({"name": _LR + "LinearLR", "kwargs": ramp})
    else:
        curve = {"T_max": steps, "eta_min": min_lr}
        phases.append({"name": _LR + "CosineAnnealingLR", "kwargs": curve})
        # torch's cosine rises again after T_max; Megatron's stays at min_lr.
        rest = {"factor": floor, "total_iters": sys.maxsize}
        phases.append({"name": _LR + "ConstantLR", "kwargs": rest})
    ends = [warmup] if warmup else []
    if scheduler.lr_decay_style == "cosine":
        ends.append(warmup + steps)
    if ends:
        phases.append({"milestones": ends})
    return [SchedulerConfig(**phase) for phase in phases]


def _check_weight_decay(
    scheduler: MegatronSchedulerConfig, kwargs: OptimizerKwargs
) -> None:
    for name in ("start_weight_decay", "end_weight_decay"):
        value = getattr(scheduler, name)
        if value not in (None, kwargs.weight_decay):
            raise ValueError(
                f"megatron_cfg.scheduler.{name}={value} differs from the optimizer's "
                f"weight_decay={kwargs.weight_decay}; weight decay stays the same "
                "over a run."
            )
