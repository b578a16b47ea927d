"""A Hugging Face folder from tensors that come one at a time, on every rank.

Knows no model: an engine says which tensors this rank writes and yields them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from nemo_rl.converters.formats.hf import finish_folder
from nemo_rl.converters.formats.safetensors_stream import Announced, SafetensorsStream
from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import CheckpointError


def write_hf_folder(
    folder: Path,
    names: Sequence[Announced] | None,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    part: int = 0,
    source: Path,
    changes: Mapping[str, Any],
) -> None:
    """Write a Hugging Face folder; every rank must call it.

    Rank 0 names the shards at the end and adds configuration and tokenizer. No rank
    holds more than one tensor.

    Args:
        folder: existing folder that all ranks see.
        names: what this rank writes, in the order of ``tensors``; None: nothing.
        tensors: exhausted on every rank, also where nothing is written.
        part: place of this rank's shards among those of the other writers.
        source: Hugging Face folder that the model came from.
        changes: entries of its config.json that differ.

    Raises:
        CheckpointError: the files could not be written.
    """
    writer = None
    try:
        if names is not None:
            writer = SafetensorsStream(folder, names, prefix=f"stage{part:03d}")
        for name, tensor in tensors:
            pulse.beat()
            if writer is not None:
                writer.add(name, tensor.cpu())
        own = (part, writer.close()) if writer else None
    except OSError as error:
        raise CheckpointError(
            f"could not write the model in {folder}: {error}. Free disk space or "
            "choose another checkpointing.checkpoint_dir."
        ) from None
    finally:
        if writer is not None:
            writer.abandon()
    written: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(written, own)
    if dist.get_rank() == 0:
        parts = [w for _, w in sorted(filter(None, written), key=lambda w: w[0])]
        finish_folder(folder, parts, source=source, config_changes=changes)
    dist.barrier()
