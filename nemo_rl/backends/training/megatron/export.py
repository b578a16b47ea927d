"""Weights of this rank's pipeline stage as (Hugging Face name, full tensor)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rl.backends.refit.base import TensorSpec
from nemo_rl.backends.training.hf_folder import write_hf_folder
from nemo_rl.backends.training.megatron.model import (
    PolicyModel,
    is_divided,
    weights_of_rank,
)
from nemo_rl.converters.families import rules_for
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import WeightRule


@torch.no_grad()
def export_weights(model: PolicyModel, spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """Yield every Hugging Face tensor of this stage, one Megatron weight at a time.

    A collective over the tensor- and expert-parallel groups: all their ranks must
    exhaust the iterator, and all receive the full tensors. A tied embedding is yielded
    by the first stage alone.
    """
    for rules, part in _gathered_weights(model, spec):
        part = part.detach()
        if len(rules) > 1:
            parts = _gather(part, parallel_state.get_expert_model_parallel_group())
        elif is_divided(rules[0], part, spec):
            group = parallel_state.get_tensor_model_parallel_group()
            parts = [rules[0].shard.unshard(_gather(part, group))]
        else:
            parts = [part]
        for rule, full in zip(rules, parts, strict=True):
            yield from zip(rule.hf, rule.transform.split(full, spec), strict=True)


def _gathered_weights(
    model: PolicyModel, spec: ModelSpec
) -> Iterator[tuple[list[WeightRule], Tensor]]:
    """Weights of this rank, each with its rule; of experts, with those of all ranks."""
    every = rules_for(spec)
    for name, rule, part in weights_of_rank(model, spec):
        if spec.tied and name.endswith("output_layer.weight"):
            continue
        rules = [rule]
        if ".mlp.experts." in rule.megatron and spec.moe is not None:
            group = parallel_state.get_expert_model_parallel_group()
            before, after = rule.megatron.split(".mlp.experts.")
            own, rest = after.split(".", 1)
            step = spec.moe.experts // group.size()
            first = int(own) - group.rank() * step
            names = [
                f"{before}.mlp.experts.{first + rank * step}.{rest}"
                for rank in range(group.size())
            ]
            rules = [every[name] for name in names]
        yield rules, part


def _gather(part: Tensor, group: Any) -> list[Tensor]:
    if group.size() == 1:
        return [part]
    parts = [torch.empty_like(part) for _ in range(group.size())]
    # gloo sends wrong data from a tensor that is not contiguous.
    dist.all_gather(parts, part.contiguous(), group=group)
    return parts


def weight_specs(model: PolicyModel, spec: ModelSpec) -> list[TensorSpec]:
    """What ``export_weights`` yields here, in its order; asks no other rank."""
    return [
        TensorSpec(
            name, str(part.dtype).removeprefix("torch."), tuple(spec.shape(dims))
        )
        for rules, part in _gathered_weights(model, spec)
        for rule in rules
        for name, dims in rule.hf.items()
    ]


def is_writer() -> bool:
    """Whether this is the one rank of its pipeline stage that hands weights on."""
    return _place_in_stage() == 0


def is_needed() -> bool:
    """Whether the writer of this stage needs this rank to gather its weights.

    It needs its tensor-parallel group, the expert-parallel groups of that group's
    ranks, and so on: both divide a stage into runs of ranks, which begin together again
    at their least common multiple.
    """
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    expert = parallel_state.get_expert_model_parallel_world_size()
    return _place_in_stage() < math.lcm(tensor, expert)


def _place_in_stage() -> int:
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    replica = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    return replica * tensor + parallel_state.get_tensor_model_parallel_rank()


def save_hf(
    folder: Path,
    model: PolicyModel,
    spec: ModelSpec,
    source: Path,
    overrides: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder; every rank must call it.

    One rank per pipeline stage writes its shards.

    Args:
        folder: existing folder that all ranks see.
        model: the bare model.
        spec: its shape.
        source: Hugging Face folder the model came from.
        overrides: entries of its config.json that the model was built with instead.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank()
    names = [(s.name, s.shape, s.torch_dtype) for s in weight_specs(model, spec)]
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    write_hf_folder(
        folder,
        names if is_writer() else None,
        export_weights(model, spec),
        part=stage,
        source=source,
        changes={**overrides, "dtype": dtype},
    )
