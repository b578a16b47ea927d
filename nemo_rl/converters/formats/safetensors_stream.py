"""Safetensors shards, planned before they are written.

The header of a shard comes first and lists every tensor, so all names and shapes are
given beforehand. Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""dtypes of weights and their names in a header."""
Announced = tuple[str, tuple[int, ...], torch.dtype]
"""Name, shape and dtype of a tensor that will come."""


@dataclass(frozen=True)
class Shard:
    """A file of tensors.

    Attributes:
        header: its first bytes.
        starts: where each tensor's bytes begin in the file, in their order.
        size: of the file.
    """

    header: bytes
    starts: dict[str, int]
    size: int


def plan_shards(tensors: Sequence[Announced], shard_bytes: int) -> list[Shard]:
    """Divide tensors over shards of at most ``shard_bytes``.

    A shard ends before the tensor that would exceed it; a tensor that is larger alone
    has a shard of its own.
    """
    groups: list[list[Announced]] = [[]]
    filled = 0
    for item in tensors:
        size = _bytes(item)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += size
    return [_plan_shard(group) for group in groups if group]


def _plan_shard(tensors: list[Announced]) -> Shard:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for item in tensors:
        name, shape, dtype = item
        end = start + _bytes(item)
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    starts = {name: first + header[name]["data_offsets"][0] for name, _, _ in tensors}
    return Shard(len(text).to_bytes(8, "little") + text, starts, first + start)


class SafetensorsStream:
    """Tensors in a fixed order, in shards of at most ``shard_bytes``.

    Every ``add`` goes to the file at once: nothing is held in memory.

    Args:
        folder: existing folder.
        tensors: (name, shape, dtype) of every tensor, in the order of ``add``.
        shard_bytes: a shard ends before the tensor that would exceed it.
        prefix: start of each shard's file name; distinct per writing process.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[Announced],
        shard_bytes: int = 4 << 30,
        prefix: str = "shard",
    ) -> None:
        self.folder, self.prefix = folder, prefix
        self._shards = plan_shards(tensors, shard_bytes)
        self._coming = list(reversed(tensors))
        self._bytes = sum(map(_bytes, tensors))
        self._open = -1
        self._file: BinaryIO | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor.

        Raises:
            ValueError: it is not the one that was announced.
        """
        announced = self._coming.pop()
        if (name, tuple(tensor.shape), tensor.dtype) != announced:
            raise ValueError(
                f"{name} {list(tensor.shape)} {tensor.dtype} came where {announced} "
                "was announced"
            )
        if self._open < 0 or name not in self._shards[self._open].starts:
            self._begin(self._open + 1)
        assert self._file is not None
        self._file.write(
            tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
        )

    def close(self) -> dict[str, Any]:
        """End the last shard; returns the shards for ``hf.finish_folder``.

        Raises:
            ValueError: announced tensors have not come.
        """
        self.abandon()
        if self._coming:
            raise ValueError(f"{len(self._coming)} tensors have not come")
        shards = {self._name(n): list(s.starts) for n, s in enumerate(self._shards)}
        return {"shards": shards, "bytes": self._bytes}

    def abandon(self) -> None:
        """Let go of the file; for a write that failed."""
        if self._file is not None:
            self._file.close()

    def _name(self, shard: int) -> str:
        return f"{self.prefix}-{shard:05d}.safetensors"

    def _begin(self, shard: int) -> None:
        self.abandon()
        self._open = shard
        self._file = open(self.folder / self._name(shard), "xb")  # noqa: SIM115
        self._file.write(self._shards[shard].header)


def _bytes(item: Announced) -> int:
    _, shape, dtype = item
    return math.prod(shape) * dtype.itemsize
