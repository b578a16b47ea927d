"""Sharded save and load of weights, optimizer and scheduler with megatron-core.

Layout-independent: what one TP x PP x DP layout writes, another reads. The generators
of each rank are kept beside it and restored when the layout is the same.
"""

from __future__ import annotations

import json
import queue
import random
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

from nemo_rl.utils.exceptions import CheckpointError

_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
_CONTENTS = "contents.json"
_UNREADABLE = (
    OSError,
    CheckpointingException,
    RuntimeError,
    KeyError,
    EOFError,
    ValueError,
)


def _sharded_state(model: Any, optimizer: Any, *, loading: bool) -> dict[str, Any]:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {**_SHARDING, "dp_cp_group": group}
    state = {"model": model.sharded_state_dict(metadata=metadata)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(
            state["model"], is_loading=loading, metadata=metadata
        )
    return state


def save(path: Path, model: Any, optimizer: Any, common: dict[str, Any]) -> None:
    """Write a checkpoint into an existing folder; every rank must call it.

    Args:
        path: folder that all ranks see.
        model: the bare (unwrapped) model.
        optimizer: Megatron optimizer, None to leave it out.
        common: small state that is the same on every rank.

    Raises:
        CheckpointError: the files could not be written.
    """
    weights = path / "weights"
    weights.mkdir(exist_ok=True)
    strategy = dist_checkpointing.serialization.get_default_save_sharded_strategy(
        "torch_dist", 1
    )
    # Megatron would start a manager process for this queue, of which nobody is the
    # parent once this rank is killed. A save that waits needs no second process.
    filesystem_async._results_queue = queue.SimpleQueue()
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = {**_sharded_state(model, optimizer, loading=False), "common": common}
    try:
        dist_checkpointing.save(
            state,
            str(weights),
            FullyParallelSaveStrategyWrapper(strategy, group),
            content_metadata=dict(_SHARDING),
        )
    except (OSError, CheckpointingException, RuntimeError) as error:
        raise CheckpointError(
            f"could not write the checkpoint in {path}: {error}. Check that the disk "
            "has room and that every node sees checkpointing.checkpoint_dir."
        ) from error
    _save_generators(path / "generators")
    if dist.get_rank() == 0:
        contents = {"optimizer": optimizer is not None}
        (path / _CONTENTS).write_text(json.dumps(contents) + "\n")


def load(path: Path, model: Any, optimizer: Any) -> dict[str, Any]:
    """Restore a checkpoint in place; every rank must call it.

    Returns:
        The ``common`` state given to ``save``.

    Raises:
        CheckpointError: missing or damaged files, or another model's shapes.
    """
    weights = path / "weights"
    try:
        if not json.loads((path / _CONTENTS).read_text())["optimizer"]:
            optimizer = None
        strategy = dist_checkpointing.serialization.get_default_load_sharded_strategy(
            str(weights)
        )
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        state = dist_checkpointing.load(
            _sharded_state(model, optimizer, loading=True),
            str(weights),
            FullyParallelLoadStrategyWrapper(strategy, group),
            strict=StrictHandling.ASSUME_OK_UNEXPECTED,
        )
    except _UNREADABLE as error:
        raise CheckpointError(
            f"could not read the checkpoint in {path}: {error}. It may be damaged or "
            "belong to another model; move it away to start from the base weights."
        ) from error
    model.load_state_dict(state["model"])
    if optimizer is not None:
        with torch.no_grad():
            optimizer.load_state_dict(state["optimizer"])
    _load_generators(path / "generators")
    return state.get("common", {})


def _layout() -> dict[str, int]:
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "world_size": dist.get_world_size(),
    }


def _save_generators(folder: Path) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    folder.mkdir(exist_ok=True)
    version, numbers, gauss = random.getstate()
    state = {
        "layout": _layout(),
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "megatron": dict(get_cuda_rng_tracker().get_states()),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, folder / f"rank{dist.get_rank():05d}.pt")


def _load_generators(folder: Path) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    file = folder / f"rank{dist.get_rank():05d}.pt"
    if not file.exists():
        return
    state = torch.load(file, weights_only=True)
    if state["layout"] != _layout():
        return  # another layout has other streams; every rank keeps its fresh seeds
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    get_cuda_rng_tracker().set_states(state["megatron"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
