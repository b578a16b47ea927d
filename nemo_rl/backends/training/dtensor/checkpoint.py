"""Save and load a divided model with torch.distributed.checkpoint.

Every entry is a tensor under its Hugging Face name: ``model.<name>``, and for the
optimizer ``moments.<name>.exp_avg`` and ``.exp_avg_sq``. Another number of ranks, or
another tensor-parallel size, reads what one wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from nemo_rl.backends.training.checkpoint_files import (
    GENERATORS,
    WEIGHTS,
    read_contents,
    reading,
    write_description,
    writing,
)
from nemo_rl.backends.training.dtensor.model import DP, TP, ShardedModel, named_weights
from nemo_rl.backends.training.generators import (
    read_generators,
    save_generators,
    set_generators,
)
from nemo_rl.converters.formats.dist_index import read_index

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    path: Path,
    model: ShardedModel,
    optimizer: torch.optim.AdamW | None,
    updates: int,
    changes: Mapping[str, Any],
) -> None:
    """Write a checkpoint into an existing folder; every rank must call it.

    Args:
        path: folder that all ranks see.
        model: its weights are written in fp32.
        optimizer: None to leave it out.
        updates: made so far.
        changes: entries of config.json that differ from the base model's.

    Raises:
        CheckpointError: the files could not be written.
    """
    # Before the first update there are no moments.
    with_moments = optimizer is not None and updates > 0
    state = _weights(model)
    if with_moments:
        state |= _moments(model, optimizer)
    with writing(path):
        dcp.save(state, checkpoint_id=path / WEIGHTS)
        save_generators(path / GENERATORS, _layout(model))
        if dist.get_rank() == 0:
            contents = {"optimizer": with_moments, "updates": updates}
            write_description(path, model.folder, changes, engine="dtensor", **contents)


def load(path: Path, model: ShardedModel, optimizer: torch.optim.AdamW) -> int:
    """Restore a checkpoint in place; every rank must call it.

    Returns:
        The updates made when it was written.

    Raises:
        CheckpointError: missing or damaged files, or another model's shapes.
    """
    contents = read_contents(path, "dtensor")
    with reading(path):
        updates = int(contents["updates"])
        # torch unpickles the index as it is: look at it first.
        read_index(path / WEIGHTS)
        optimizer.state.clear()
        if contents["optimizer"]:
            for parameter in model.module.parameters():
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(updates)),
                    **{name: torch.zeros_like(parameter) for name in _MOMENTS},
                }
        state = _weights(model)
        if contents["optimizer"]:
            state |= _moments(model, optimizer)
        dcp.load(state, checkpoint_id=path / WEIGHTS)
        generators = read_generators(path / GENERATORS, _layout(model))
    if generators is not None:
        set_generators(generators)
    return updates


def _weights(model: ShardedModel) -> dict[str, Tensor]:
    weights = named_weights(model.module).items()
    return {f"model.{name}": weight.detach() for name, weight in weights}


def _moments(model: ShardedModel, optimizer: Any) -> dict[str, Tensor]:
    return {
        f"moments.{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in model.module.named_parameters()
        for moment in _MOMENTS
        if parameter in optimizer.state
    }


def _layout(model: ShardedModel) -> dict[str, int]:
    sizes = dict(zip(model.mesh.mesh_dim_names or (), model.mesh.shape, strict=True))
    return {DP: sizes[DP], TP: sizes.get(TP, 1)}
