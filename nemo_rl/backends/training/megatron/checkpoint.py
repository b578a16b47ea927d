"""Sharded save and load of weights, optimizer and scheduler with megatron-core.

Layout-independent: what one TP x PP x DP layout writes, another reads. The generators
of each rank are kept beside it and restored when the layout is the same.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.validation import StrictHandling

from nemo_rl.backends.training.checkpoint_files import (
    GENERATORS,
    WEIGHTS,
    read_contents,
    reading,
    write_description,
    writing,
)
from nemo_rl.backends.training.generators import (
    read_generators,
    save_generators,
    set_generators,
)
from nemo_rl.backends.training.megatron.optimizer_state import as_own, own_record
from nemo_rl.converters.formats.dist_checkpoint import COMMON, read_index

_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}


def _sharded_state(model: Any, optimizer: Any, *, loading: bool) -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {**_SHARDING, "dp_cp_group": group}
    state = {"model": model.sharded_state_dict(metadata=metadata)}
    if optimizer is not None:
        _make_moments(optimizer)
        state["optimizer"] = optimizer.sharded_state_dict(
            state["model"], is_loading=loading, metadata=metadata
        )
    return state


def _make_moments(optimizer: Any) -> None:
    """Give an optimizer that has made no step yet its zeros: they are saved as well."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(part, "is_stub_optimizer", False):
            part.init_state_fn(part.optimizer, part.config)


def save(
    path: Path,
    model: Any,
    optimizer: Any,
    common: dict[str, Any],
    description: tuple[Path, Mapping[str, Any]],
) -> None:
    """Write a checkpoint into an existing folder; every rank must call it.

    Args:
        path: folder that all ranks see.
        model: the bare (unwrapped) model.
        optimizer: Megatron optimizer, None to leave it out.
        common: small state that is the same on every rank.
        description: Hugging Face folder whose configuration and tokenizer are kept
            with the weights, and the entries of config.json that differ from its own.

    Raises:
        CheckpointError: the files could not be written.
    """
    weights = path / WEIGHTS
    # Megatron would start a manager process for this queue, of which nobody is the
    # parent once this rank is killed. A save that waits needs no second process.
    filesystem_async._results_queue = queue.SimpleQueue()
    strategy = dist_checkpointing.serialization.get_default_save_sharded_strategy(
        "torch_dist", 1
    )
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = {**_sharded_state(model, optimizer, loading=False), "common": common}
    with writing(path, CheckpointingException):
        weights.mkdir(exist_ok=True)
        dist_checkpointing.save(
            state,
            str(weights),
            FullyParallelSaveStrategyWrapper(strategy, group),
            content_metadata=dict(_SHARDING),
        )
        tracked = dict(_tracker().get_states())
        save_generators(path / GENERATORS, _layout(), megatron=tracked)
        if dist.get_rank() == 0:
            contents = {"engine": "megatron", "optimizer": optimizer is not None}
            write_description(path, *description, **contents)


def load(path: Path, model: Any, optimizer: Any) -> dict[str, Any]:
    """Restore a checkpoint in place; every rank must call it.

    Returns:
        The ``common`` state given to ``save``.

    Raises:
        CheckpointError: missing or damaged files, or another model's shapes.
    """
    contents = read_contents(path, "megatron")
    with reading(path, CheckpointingException):
        saved = optimizer if contents["optimizer"] else None
        _refuse_code(path / WEIGHTS)
        state = read_weights(path / WEIGHTS, model, saved)
        generators = read_generators(path / GENERATORS, _layout())
    model.load_state_dict(state["model"])
    if saved is not None:
        with torch.no_grad():
            saved.load_state_dict(state["optimizer"])
    else:
        # bf16 weights have fp32 masters in the optimizer, which would undo the load.
        optimizer.reload_model_params()
    if generators is not None:
        set_generators(generators)
        _tracker().set_states(generators["megatron"])
    return state.get("common", {})


def _refuse_code(weights: Path) -> None:
    """Megatron unpickles two of its files as they are: look at them first."""
    read_index(weights)
    torch.load(weights / COMMON, weights_only=True)


def read_weights(weights: Path, model: Any, optimizer: Any) -> dict[str, Any]:
    """The state of a distributed checkpoint, in the layout of this model.

    Args:
        weights: folder that holds ``.metadata``.
        model: the bare model; it is not changed.
        optimizer: as the model; None to leave its state out.
    """
    strategy = dist_checkpointing.serialization.get_default_load_sharded_strategy(
        str(weights)
    )
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    sharded = _sharded_state(model, optimizer, loading=True)
    record = own_record(sharded.get("optimizer"))
    state = dist_checkpointing.load(
        sharded,
        str(weights),
        FullyParallelLoadStrategyWrapper(strategy, group),
        strict=StrictHandling.ASSUME_OK_UNEXPECTED,
    )
    if optimizer is not None:
        state["optimizer"] = as_own(record, state.get("optimizer"))
    return state


def _layout() -> dict[str, int]:
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "world_size": dist.get_world_size(),
    }


def _tracker() -> Any:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return get_cuda_rng_tracker()
