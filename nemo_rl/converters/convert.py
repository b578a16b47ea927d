"""Convert a model between a Hugging Face folder and a Megatron checkpoint.

Tensor by tensor, in one process and without a model. The result is read back from disk
and compared with the source before it gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nemo_rl.converters.bridge import (
    HfSide,
    MegatronSide,
    Side,
    Weight,
    is_megatron,
    weights_of,
)
from nemo_rl.converters.dist_checkpoint import DistCheckpointWriter
from nemo_rl.converters.hf import copy_companions, finish_folder, write_config
from nemo_rl.converters.model_spec import ModelSpec, model_spec, read_hf_config
from nemo_rl.converters.safetensors_stream import SafetensorsStream
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from nemo_rl.utils.files import human_size
from nemo_rl.utils.publish import publish_folder

HF_PART = "hf"
"""Folder in a converted checkpoint that keeps config.json and the tokenizer."""
_LINEARS = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)

Progress = Callable[[int], None]
"""Called with the bytes of every weight that was written or compared."""


def _ignore(_: int) -> None:
    """No progress is shown."""


def open_side(folder: Path, config: Path | None = None) -> tuple[Side, ModelSpec]:
    """Open a folder of either kind and account for its tensors.

    Args:
        folder: Hugging Face folder, distributed checkpoint, or training checkpoint.
        config: folder of the ``config.json`` that describes a distributed checkpoint;
            None for the one that a conversion left in it.

    Raises:
        NemoRLError: no such folder, no configuration, or tensors that do not fit it.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder")
    if not is_megatron(folder):
        spec = model_spec(read_hf_config(folder), source=str(folder / "config.json"))
        return HfSide(folder, spec), spec
    place = config_of(folder, config)
    spec = model_spec(read_hf_config(place), source=str(place / "config.json"))
    return MegatronSide(folder, spec), spec


def config_of(folder: Path, config: Path | None) -> Path:
    """The folder with the ``config.json`` of a folder of weights."""
    if config is not None:
        return config
    for place in (folder / HF_PART, folder):
        if (place / "config.json").exists():
            return place
    raise ConfigurationError(
        f"{folder} has no {HF_PART}/config.json, so the model's shape is not known. "
        "Name the Hugging Face folder that it was trained from: --config FOLDER."
    )


def dtype_of(side: Side) -> torch.dtype:
    """The one dtype of a side.

    Raises:
        ConfigurationError: it has several; one of them would lose what others hold.
    """
    if len(side.dtypes) > 1:
        names = sorted(str(dtype).removeprefix("torch.") for dtype in side.dtypes)
        raise ConfigurationError(
            f"{side.folder} holds {' and '.join(names)} tensors. Say which the result "
            "shall have: --dtype float32 loses nothing."
        )
    return next(iter(side.dtypes))


def total_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of all weights."""
    sizes = (torch.Size(w.shape).numel() for w in weights_of(spec))
    return sum(sizes) * dtype.itemsize


def convert(  # noqa: PLR0913 - keyword-only beyond the two folders
    source: Path,
    target: Path,
    *,
    config: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 4 << 30,
    verify: bool = True,
    progress: Progress = _ignore,
) -> Path:
    """Write ``source`` as the other kind of folder.

    Args:
        source: see ``open_side``.
        target: must not exist.
        config: see ``open_side``.
        dtype: of the result; None keeps the source's, if that is one.
        shard_bytes: size of a safetensors shard.
        verify: compare the result with the source before it gets its name.
        progress: called while weights are written and compared.

    Raises:
        NemoRLError: the source is damaged or no such model, or the result could not be
            written or differs; nothing is left under the name of the target.
    """
    side, spec = open_side(source, config)
    dtype = dtype or dtype_of(side)
    _check_room(target, total_bytes(spec, dtype))
    folder = source if isinstance(side, HfSide) else config_of(source, config)

    def write(temporary: Path) -> None:
        if isinstance(side, HfSide):
            _write_megatron(side, spec, temporary, dtype, progress)
            part = temporary / HF_PART
            part.mkdir()
            copy_companions(folder, part)
            write_config(part, {"dtype": str(dtype).removeprefix("torch.")})
        else:
            _write_hf(side, spec, temporary, dtype, shard_bytes, folder, progress)
        if verify:
            kind = MegatronSide if isinstance(side, HfSide) else HfSide
            written = kind(temporary, spec)
            compare(side, written, spec, dtype=dtype, progress=progress)

    return publish_folder(target, write)


def compare(
    one: Side,
    two: Side,
    spec: ModelSpec,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress = _ignore,
) -> None:
    """Read both sides from disk and compare every element.

    Args:
        one: a side.
        two: the other.
        spec: the model of both.
        dtype: convert to it first; None asks for equal dtypes as well.
        progress: called after every weight.

    Raises:
        CheckpointError: an element differs; names the tensor and how many.
    """
    for weight in weights_of(spec):
        pairs = zip(one.parts(weight), two.parts(weight), strict=True)
        for name, (a, b) in zip(weight.rule.hf, pairs, strict=True):
            left, right = (a, b) if dtype is None else (a.to(dtype), b.to(dtype))
            if left.dtype != right.dtype:
                raise CheckpointError(
                    f"{name} is {left.dtype} in {one.folder} and {right.dtype} in "
                    f"{two.folder}"
                )
            if not _same_bits(left, right):
                count = int((left != right).sum())
                raise CheckpointError(
                    f"{name} differs between {one.folder} and {two.folder}: {count} of "
                    f"{left.numel()} elements"
                )
            progress(left.nbytes)


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal to the bit: a NaN equals itself, and 0 is not -0."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.dtype.itemsize]
    return torch.equal(left.contiguous().view(kind), right.contiguous().view(kind))


def _write_megatron(
    side: Side, spec: ModelSpec, folder: Path, dtype: torch.dtype, progress: Progress
) -> None:
    writer = DistCheckpointWriter(folder)
    try:
        for weight in weights_of(spec):
            parts = [part.to(dtype) for part in side.parts(weight)]
            full = weight.rule.transform.merge(parts, spec)
            if weight.layer is None:
                writer.add(weight.key, full)
            else:
                layers = spec.num_layers
                writer.add(weight.key, full, layer=weight.layer, layers=layers)
            progress(full.nbytes)
        for layer in range(spec.num_layers):
            for linear in _LINEARS:
                state = f"decoder.layers.{linear}._extra_state"
                writer.add_nothing(f"{state}/shard_{layer}_{spec.num_layers}")
        writer.finish({})
    finally:
        writer.close()


def _write_hf(  # noqa: PLR0913
    side: Side,
    spec: ModelSpec,
    folder: Path,
    dtype: torch.dtype,
    shard_bytes: int,
    config: Path,
    progress: Progress,
) -> None:
    weights: list[Weight] = weights_of(spec)
    names = [(name, spec.hf_shape(name)) for w in weights for name in w.rule.hf]
    stream = SafetensorsStream(folder, names, dtype, shard_bytes)
    try:
        for weight in weights:
            for name, part in zip(weight.rule.hf, side.parts(weight), strict=True):
                stream.add(name, part.to(dtype))
                progress(part.numel() * dtype.itemsize)
        written = stream.close()
    finally:
        stream.abandon()
    changes = {"dtype": str(dtype).removeprefix("torch.")}
    finish_folder(folder, [written], source=config, config_changes=changes)


def _check_room(target: Path, size: int) -> None:
    if target.exists():
        raise ConfigurationError(
            f"{target} exists already. Remove it, or choose another name."
        )
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < size + (64 << 20):
        raise CheckpointError(
            f"{target} needs {human_size(size)}, and {parent} has {human_size(free)} "
            "free. Free disk space or choose another place."
        )
