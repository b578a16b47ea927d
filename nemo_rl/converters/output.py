"""What every conversion ends with: room on the disk, the files, and the comparison.

A result is written into a hidden folder, read back, compared with what should be in it,
and only then gets its name.
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nemo_rl
from nemo_rl.converters.formats.hf import HfWeights, finish_folder
from nemo_rl.converters.formats.safetensors_stream import Announced, SafetensorsStream
from nemo_rl.converters.manifest import digest, write_manifest
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from nemo_rl.utils.files import human_size
from nemo_rl.utils.publish import publish_folder

Progress = Callable[[int], None]
"""Called with the bytes of every tensor that was written or compared."""
SHARD_BYTES = 4 << 30
"""Size of a safetensors shard where nobody says another."""
_SPARE_BYTES = 64 << 20


def quiet(_: int) -> None:
    """No progress is shown."""


def _keep(_: str) -> None:
    """Nothing is given back."""


@dataclass(frozen=True)
class HfResult:
    """A Hugging Face folder that does not exist yet.

    Attributes:
        tensors: name, shape and dtype of every tensor, in the order they are written.
        read: makes a tensor of that shape and dtype; called once to write it and once
            to compare it.
        companions: folder that configuration and tokenizer are copied from.
        changes: entries of config.json that differ from that folder's.
        release: gives back the memory of what ``read`` read.
        command: that makes it, for the manifest.
    """

    tensors: Sequence[Announced]
    read: Callable[[str], Tensor]
    companions: Path
    changes: Mapping[str, Any]
    release: Callable[[str], None] = _keep
    command: str = ""


def publish_hf(
    target: Path,
    result: HfResult,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = quiet,
) -> Path:
    """Write a Hugging Face folder, compare it with what it is made of, name it.

    Args:
        target: must not exist.
        result: what it shall hold.
        shard_bytes: size of a safetensors shard.
        progress: called while tensors are written and compared.

    Raises:
        ConfigurationError: the target exists.
        CheckpointError: it could not be written, or differs once it is read back.
    """
    check_target(target, total_bytes(result.tensors))

    def write(folder: Path) -> None:
        stream = SafetensorsStream(folder, result.tensors, shard_bytes)
        try:
            for name, _, _ in result.tensors:
                tensor = result.read(name)
                stream.add(name, tensor)
                progress(tensor.nbytes)
                result.release(name)
            written = stream.close()
        finally:
            stream.abandon()
        finish_folder(
            folder, [written], source=result.companions, config_changes=result.changes
        )
        tensors = _compare(folder, result, progress)
        made = {"nemo_rl": nemo_rl.__version__, "kind": "huggingface"}
        write_manifest(folder, tensors, {**made, "command": result.command})

    return publish_folder(target, write)


def _compare(
    folder: Path, result: HfResult, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Read the folder back; what its manifest says of every tensor."""
    found: dict[str, dict[str, Any]] = {}
    with HfWeights(folder) as weights:
        expected = {name for name, _, _ in result.tensors}
        if weights.names() != expected:
            raise CheckpointError(
                f"{folder} holds {len(weights.names())} tensors once it is read back, "
                f"{len(expected)} were written"
            )
        for name, _, _ in result.tensors:
            tensor = weights.tensor(name)
            check_same(name, result.read(name), tensor, folder)
            found[name] = {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "bytes": tensor.nbytes,
                "digest": digest(tensor),
            }
            progress(tensor.nbytes)
            weights.release(name)
            result.release(name)
    return found


def check_same(name: str, expected: Tensor, found: Tensor, folder: Path) -> None:
    """Compare a tensor with what was read back, to the bit.

    Raises:
        CheckpointError: they differ.
    """
    if not same_bits(expected, found):
        raise CheckpointError(
            f"{name} differs once {folder} is read back: {list(found.shape)} "
            f"{found.dtype} instead of {list(expected.shape)} {expected.dtype}, or "
            "other values. The disk may be damaged or full."
        )


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal in shape, dtype and every bit: a NaN equals itself, and 0 is not -0."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    flat = (t.contiguous().view(-1).view(torch.uint8) for t in (left, right))
    return torch.equal(*flat)


def check_target(target: Path, size: int) -> None:
    """Refuse a target that exists or does not fit on its disk.

    Raises:
        ConfigurationError: it exists.
        CheckpointError: there is no room for ``size`` bytes.
    """
    if target.exists():
        raise ConfigurationError(
            f"{target} exists already. Remove it, or choose another name."
        )
    check_room(target, size)


def check_room(target: Path, size: int) -> None:
    """Refuse what does not fit on the disk of a target.

    Raises:
        CheckpointError: there is no room for ``size`` bytes.
    """
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < size + _SPARE_BYTES:
        raise CheckpointError(
            f"{target} needs {human_size(size)}, and {parent} has {human_size(free)} "
            "free. Free disk space or choose another place."
        )


def total_bytes(tensors: Iterable[Announced]) -> int:
    """Bytes of all tensors."""
    return sum(math.prod(shape) * dtype.itemsize for _, shape, dtype in tensors)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which layer 2 comes before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]


def prevalent(tensors: Iterable[Announced]) -> str:
    """Name of the dtype of most elements, as config.json spells it."""
    counts: Counter[torch.dtype] = Counter()
    for _, shape, dtype in tensors:
        counts[dtype] += math.prod(shape)
    return str(counts.most_common(1)[0][0]).removeprefix("torch.")
