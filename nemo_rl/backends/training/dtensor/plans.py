"""Tensor-parallel plans: which modules of a model are divided, and along what.

A plan maps names of modules (``*`` stands for a number) to torch's parallel styles.
Embedding and output layer are in none: every tensor-parallel rank keeps them whole
(FSDP still divides them over the data-parallel ranks), so that any vocabulary fits and
tied weights stay one tensor.
"""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import nn
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
)

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of config.json for which there is a plan."""
_KEY = "policy.dtensor_cfg.custom_parallel_plan"


class SumGradients(ParallelStyle):
    """A module that is whole on every rank but sees only the rank's own heads.

    Each rank has a part of its gradient; they are summed before the update.
    """

    def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
        del device_mesh
        return module


def plan_for(model: nn.Module, custom: str | None) -> dict[str, ParallelStyle]:
    """The plan of a model.

    Args:
        model: a Hugging Face causal language model.
        custom: "module:name" of a plan, or of a function from model to plan; it
            replaces the built-in one.

    Raises:
        ConfigurationError: no plan for this kind of model, or a custom one that is no
            plan or names a module that the model lacks.
    """
    if custom is not None:
        return _custom_plan(model, custom)
    kind = model.config.model_type  # pyrefly: ignore[missing-attribute]
    if kind not in MODEL_TYPES:
        raise ConfigurationError(
            f"policy.dtensor_cfg.tensor_parallel_size is above 1, but there is no plan "
            f"for model_type={kind!r} (there is for {', '.join(MODEL_TYPES)}). Set it "
            f"to 1, or name a plan of your own in {_KEY}."
        )
    plan: dict[str, ParallelStyle] = {}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        plan[f"model.layers.*.{name}"] = ColwiseParallel()
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        plan[f"model.layers.*.{name}"] = ColwiseParallel()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        plan[f"model.layers.*.{name}"] = RowwiseParallel()
    if kind == "qwen3":
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            plan[f"model.layers.*.{name}"] = SumGradients()
    return plan


def _custom_plan(model: nn.Module, path: str) -> dict[str, ParallelStyle]:
    found = import_object(path)
    plan = found(model) if callable(found) else found
    if not isinstance(plan, dict) or not all(
        isinstance(style, ParallelStyle) for style in plan.values()
    ):
        raise ConfigurationError(
            f"{_KEY}={path!r} is not a plan: expected a dict of module names to "
            "torch.distributed.tensor.parallel styles, or a function that returns one."
        )
    names = [name for name, _ in model.named_modules()]
    for pattern in plan:
        if not fnmatch.filter(names, pattern):
            raise ConfigurationError(
                f"{_KEY}={path!r} names {pattern!r}, but the model has no such module."
            )
    return plan


def summed_parameters(model: nn.Module, plan: dict[str, ParallelStyle]) -> set[str]:
    """Names of the parameters whose gradients are summed over tensor-parallel ranks."""
    patterns = [p for p, style in plan.items() if isinstance(style, SumGradients)]
    return {
        name
        for name, _ in model.named_parameters()
        if any(fnmatch.fnmatch(name.rpartition(".")[0], p) for p in patterns)
    }
