"""Sharded save and load of weights, optimizer and scheduler with megatron-core.

Layout-independent: what one TP x PP x DP layout writes, another reads. The generators
of each rank are kept beside it and restored when the layout is the same.
"""

from __future__ import annotations

import json
import pickle
import queue
import random
import zipfile
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
from torch.distributed.checkpoint.api import CheckpointException

from nemo_rl.backends.training.megatron.optimizer_state import as_own, own_record
from nemo_rl.converters.formats.dist_checkpoint import COMMON, read_index
from nemo_rl.converters.formats.hf import HF_PART, copy_companions, write_config
from nemo_rl.utils.exceptions import CheckpointError

_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
    "singleton_local_shards": False,
}
_CONTENTS = "contents.json"
_UNWRITABLE = (
    OSError,
    CheckpointingException,
    CheckpointException,  # torch's own, a BaseException
    RuntimeError,
)
# What readers of JSON, pickles, archives and shards raise for a file cut or altered.
_UNREADABLE = (
    *_UNWRITABLE,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    CheckpointError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


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
    weights = path / "weights"
    # Megatron would start a manager process for this queue, of which nobody is the
    # parent once this rank is killed. A save that waits needs no second process.
    filesystem_async._results_queue = queue.SimpleQueue()
    strategy = dist_checkpointing.serialization.get_default_save_sharded_strategy(
        "torch_dist", 1
    )
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = {**_sharded_state(model, optimizer, loading=False), "common": common}
    try:
        weights.mkdir(exist_ok=True)
        dist_checkpointing.save(
            state,
            str(weights),
            FullyParallelSaveStrategyWrapper(strategy, group),
            content_metadata=dict(_SHARDING),
        )
        _save_generators(path / "generators")
        if dist.get_rank() == 0:
            contents = {"optimizer": optimizer is not None}
            (path / _CONTENTS).write_text(json.dumps(contents) + "\n")
            (path / HF_PART).mkdir(exist_ok=True)
            copy_companions(description[0], path / HF_PART)
            write_config(path / HF_PART, description[1])
    except _UNWRITABLE as error:
        raise CheckpointError(
            f"could not write the checkpoint in {path}: {_reason(error)}. Check that "
            "the disk has room and that every node sees checkpointing.checkpoint_dir."
        ) from error


def load(path: Path, model: Any, optimizer: Any) -> dict[str, Any]:
    """Restore a checkpoint in place; every rank must call it.

    Returns:
        The ``common`` state given to ``save``.

    Raises:
        CheckpointError: missing or damaged files, or another model's shapes.
    """
    try:
        with_optimizer = json.loads((path / _CONTENTS).read_text())["optimizer"]
        saved = optimizer if with_optimizer else None
        _refuse_code(path / "weights")
        state = read_weights(path / "weights", model, saved)
        generators = _read_generators(path / "generators")
    except _UNREADABLE as error:
        raise CheckpointError(
            f"could not read the checkpoint in {path}: {_reason(error)}. It may be "
            "damaged or belong to another model; move it away to start from the base "
            "weights."
        ) from error
    model.load_state_dict(state["model"])
    if saved is not None:
        with torch.no_grad():
            saved.load_state_dict(state["optimizer"])
    else:
        # bf16 weights have fp32 masters in the optimizer, which would undo the load.
        optimizer.reload_model_params()
    if generators is not None:
        _set_generators(generators)
    return state.get("common", {})


def _refuse_code(weights: Path) -> None:
    """Megatron unpickles two of its files as they are: look at them first."""
    read_index(weights)
    torch.load(weights / COMMON, weights_only=True)


def _reason(error: BaseException) -> str:
    """One line; torch's own exception lists a traceback per rank."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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


def _read_generators(folder: Path) -> dict[str, Any] | None:
    """This rank's generators, None where another layout wrote them."""
    file = folder / f"rank{dist.get_rank():05d}.pt"
    if not file.exists():
        return None
    state = torch.load(file, weights_only=True)
    # Another layout has other streams; every rank then keeps its fresh seeds.
    return state if state["layout"] == _layout() else None


def _set_generators(state: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    get_cuda_rng_tracker().set_states(state["megatron"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
