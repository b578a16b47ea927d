"""Convert a model between a Hugging Face folder and a Megatron checkpoint.

Tensor by tensor, in one process and without a model. The result is read back from disk
and compared with the source before it gets its name.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_rl.converters.bridge import (
    HfSide,
    MegatronSide,
    Side,
    Weight,
    extra_states,
    find_weights,
    is_megatron,
    weights_of,
)
from nemo_rl.converters.dist_checkpoint import DistCheckpointWriter
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.hf import (
    HF_PART,
    copy_companions,
    finish_folder,
    write_config,
)
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.safetensors_stream import SafetensorsStream
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from nemo_rl.utils.files import human_size
from nemo_rl.utils.publish import publish_folder

Plan = list[tuple[Weight, torch.dtype]]
"""The weights of a model in their order, and the dtype that each is written in."""
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
    beside = find_weights(folder).parent if is_megatron(folder) else folder
    for place in (folder / HF_PART, folder, beside / HF_PART):
        if (place / "config.json").exists():
            return place
    raise ConfigurationError(
        f"{folder} has no {HF_PART}/config.json, so the model's shape is not known. "
        "Name the Hugging Face folder that it was trained from: --config FOLDER."
    )


def dtypes_of(
    side: Side, weights: list[Weight], dtype: torch.dtype | None
) -> list[torch.dtype]:
    """The dtype that each weight is written in.

    Args:
        side: where the weights come from.
        weights: of the result.
        dtype: asked for; None keeps every tensor's own.

    Raises:
        ConfigurationError: tensors that become one have several dtypes; one of them
            would lose what others hold.
    """
    found: dict[str, set[torch.dtype]] = {}
    chosen = []
    for weight in weights:
        own = side.dtypes(weight)
        one = own[0] if dtype is None or weight.rule.keeps_dtype else dtype
        found.setdefault(weight.key, set()).update(own if one is own[0] else {one})
        chosen.append(one)
    mixed = {key: dtypes for key, dtypes in found.items() if len(dtypes) > 1}
    if mixed:
        key, dtypes = next(iter(mixed.items()))
        names = sorted(str(d).removeprefix("torch.") for d in dtypes)
        raise ConfigurationError(
            f"{side.folder} holds {' and '.join(names)} tensors that become one, "
            f"{key}. Say which dtype the result shall have: --dtype float32 loses "
            "nothing."
        )
    return chosen


def total_bytes(weights: list[Weight], dtypes: list[torch.dtype]) -> int:
    """Bytes of all weights."""
    pairs = zip(weights, dtypes, strict=True)
    return sum(math.prod(w.shape) * dtype.itemsize for w, dtype in pairs)


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
        dtype: of the result; None keeps every tensor's own.
        shard_bytes: size of a safetensors shard.
        verify: compare the result with the source before it gets its name.
        progress: called while weights are written and compared.

    Raises:
        NemoRLError: the source is damaged or no such model, or the result could not be
            written or differs; nothing is left under the name of the target.
    """
    side, spec = open_side(source, config)
    weights = weights_of(spec)
    dtypes = dtypes_of(side, weights, dtype)
    _check_room(target, total_bytes(weights, dtypes))
    plan = list(zip(weights, dtypes, strict=True))
    changes = {"dtype": str(_prevalent(plan)).removeprefix("torch.")}
    folder = source if isinstance(side, HfSide) else config_of(source, config)

    def write(temporary: Path) -> None:
        if isinstance(side, HfSide):
            _write_megatron(side, spec, temporary, plan, progress)
            part = temporary / HF_PART
            part.mkdir()
            copy_companions(folder, part)
            write_config(part, changes)
        else:
            written = _write_hf(side, spec, temporary, plan, shard_bytes, progress)
            finish_folder(temporary, [written], source=folder, config_changes=changes)
        if verify:
            kind = MegatronSide if isinstance(side, HfSide) else HfSide
            compare(side, kind(temporary, spec), plan, progress=progress)

    return publish_folder(target, write)


def compare(one: Side, two: Side, plan: Plan, *, progress: Progress = _ignore) -> None:
    """Read both sides from disk and compare every element.

    Args:
        one: a side; its tensors are converted to the plan's dtype first.
        two: the other, which must have that dtype.
        plan: the weights, and the dtype of each.
        progress: called after every weight.

    Raises:
        CheckpointError: an element differs; names the tensor and how many.
    """
    for weight, dtype in plan:
        pairs = zip(one.parts(weight), two.parts(weight), strict=True)
        for name, (a, right) in zip(weight.rule.hf, pairs, strict=True):
            left = a.to(dtype)
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


def _prevalent(plan: Plan) -> torch.dtype:
    """The dtype of most elements."""
    counts: Counter[torch.dtype] = Counter()
    for weight, dtype in plan:
        counts[dtype] += math.prod(weight.shape)
    return counts.most_common(1)[0][0]


def _write_megatron(
    side: Side, spec: ModelSpec, folder: Path, plan: Plan, progress: Progress
) -> None:
    writer = DistCheckpointWriter(folder)
    try:
        for weight, dtype in plan:
            parts = [part.to(dtype) for part in side.parts(weight)]
            full = weight.rule.transform.merge(parts, spec)
            writer.add(weight.key, full, weight.index, weight.stack)
            progress(full.nbytes)
        for name in extra_states([weight for weight, _ in plan]):
            writer.add_nothing(name)
        writer.finish({})
    finally:
        writer.close()


def _write_hf(  # noqa: PLR0913
    side: Side,
    spec: ModelSpec,
    folder: Path,
    plan: Plan,
    shard_bytes: int,
    progress: Progress,
) -> dict[str, Any]:
    names = [
        (name, spec.shape(dims), dtype)
        for weight, dtype in plan
        for name, dims in weight.rule.hf.items()
    ]
    stream = SafetensorsStream(folder, names, shard_bytes)
    try:
        for weight, dtype in plan:
            for name, part in zip(weight.rule.hf, side.parts(weight), strict=True):
                stream.add(name, part.to(dtype))
                progress(part.numel() * dtype.itemsize)
        return stream.close()
    finally:
        stream.abandon()


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
