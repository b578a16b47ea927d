"""Weights of this rank's pipeline stage as (Hugging Face name, full tensor)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_rl.backends.training.megatron.model import (
    PolicyModel,
    is_divided,
    weights_of_rank,
)
from nemo_rl.converters.hf import HfShardWriter, finish_folder
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import WeightRule


@torch.no_grad()
def export_weights(model: PolicyModel, spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """Yield every Hugging Face tensor of this stage, one Megatron weight at a time.

    A collective over the tensor- and expert-parallel groups: all their ranks must
    exhaust the iterator, and all receive the full tensors. A tied embedding is yielded
    by the first stage alone.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    for name, rule, part in weights_of_rank(model, spec):
        if spec.tied and name.endswith("output_layer.weight"):
            continue
        part = part.detach()
        if ".mlp.experts." in rule.megatron:
            yield from _every_rank(rule, part, spec)
            continue
        if is_divided(rule, part, spec):
            part = rule.shard.unshard(_gather(part, group))
        yield from zip(rule.hf, rule.transform.split(part, spec), strict=True)


def _every_rank(
    rule: WeightRule, part: Tensor, spec: ModelSpec
) -> Iterator[tuple[str, Tensor]]:
    """An expert of this rank, and the ones that the others of its group have."""
    group = parallel_state.get_expert_model_parallel_group()
    assert spec.moe is not None
    own = int(rule.megatron.split(".mlp.experts.")[1].split(".")[0])
    count = spec.moe.experts // group.size()
    for rank, full in enumerate(_gather(part, group)):
        expert = own + (rank - group.rank()) * count
        hf = [n.replace(f".experts.{own}.", f".experts.{expert}.") for n in rule.hf]
        yield from zip(hf, rule.transform.split(full, spec), strict=True)


def _gather(part: Tensor, group: Any) -> list[Tensor]:
    if group.size() == 1:
        return [part]
    parts = [torch.empty_like(part) for _ in range(group.size())]
    # gloo sends wrong data from a tensor that is not contiguous.
    dist.all_gather(parts, part.contiguous(), group=group)
    return parts


def save_hf(
    folder: Path,
    model: PolicyModel,
    spec: ModelSpec,
    source: Path,
    overrides: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder; every rank must call it.

    One rank per pipeline stage writes its shards; rank 0 then names them and adds
    configuration and tokenizer. No rank holds more than one shard.

    Args:
        folder: existing folder that all ranks see.
        model: the bare model.
        spec: its shape.
        source: Hugging Face folder the model came from.
        overrides: entries of its config.json that the model was built with instead.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank()
    is_writer = (
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    )
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    writer = HfShardWriter(folder, f"stage{stage:03d}") if is_writer else None
    for name, tensor in export_weights(model, spec):
        if writer is not None:
            writer.add(name, tensor)
    written: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(written, (stage, writer.close()) if writer else None)
    if dist.get_rank() == 0:
        parts = [part for _, part in sorted(filter(None, written), key=lambda w: w[0])]
        changes = {**overrides, "dtype": dtype}
        finish_folder(folder, parts, source=source, config_changes=changes)
    dist.barrier()
