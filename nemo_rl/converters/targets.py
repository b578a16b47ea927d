"""A result of which every byte has its place before the first is written.

So weights may be written in any order, by any thread or process, and again after a
crash: the same source gives the same bytes in the same places.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nemo_rl.converters.bridge import Weight, extra_states, some
from nemo_rl.converters.formats.archive import (
    ALIGNMENT,
    NOTHING,
    Envelope,
    envelope,
    raw,
)
from nemo_rl.converters.formats.dist_index import IndexBuilder
from nemo_rl.converters.formats.hf import (
    HF_PART,
    SINGLE_NAME,
    copy_companions,
    write_config,
    write_weight_map,
)
from nemo_rl.converters.formats.safetensors_stream import plan_shards
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.output import prevalent
from nemo_rl.converters.transforms import Transform
from nemo_rl.utils.exceptions import ConfigurationError

Plan = list[tuple[Weight, torch.dtype]]
"""The weights of a model in their order, and the dtype that each is written in."""

_STEP = 64 << 10
"""Bytes of one write. For larger ones the kernel takes larger pages of memory, which a
virtual machine has to get from its host: measured, that takes up to four times as long.
"""


class Piece(NamedTuple):
    """Bytes that lie side by side in a file of the result."""

    file: str
    start: int
    data: list[bytes | memoryview]


class Target(Protocol):
    """A folder to be written.

    Attributes:
        files: names of the files with weights, and their sizes.
    """

    files: dict[str, int]

    def fixed(self) -> Iterable[Piece]:
        """What lies in the files beside the weights."""
        ...

    def pieces(self, number: int, parts: list[Tensor]) -> Iterable[Piece]:
        """What becomes of the Hugging Face tensors of the plan's weight ``number``."""
        ...

    def finish(self, folder: Path) -> None:
        """Write the small files: index, configuration, tokenizer."""
        ...


class MegatronTarget:
    """A distributed checkpoint.

    Args:
        spec: the model.
        plan: its weights.
        shard_bytes: a file ends before the weight that would exceed it.
        companions: folder of config.json and tokenizer.

    Raises:
        ConfigurationError: the weights do not fill the tensors exactly once.
    """

    def __init__(
        self, spec: ModelSpec, plan: Plan, shard_bytes: int, companions: Path
    ) -> None:
        self.spec, self.plan, self.companions = spec, plan, companions
        self.files: dict[str, int] = {}
        self._index = IndexBuilder()
        self._places: list[tuple[str, int, Envelope]] = []
        self._nothing: list[tuple[str, int]] = []
        for weight, dtype in plan:
            around = envelope((*[1] * len(weight.stack), *weight.shape), dtype)
            length = around.size + math.prod(weight.shape) * dtype.itemsize
            file, start = self._room(length, shard_bytes)
            at = (weight.index, weight.stack)
            place = (file, start, length)
            self._index.add(weight.key, weight.shape, dtype, at, place)
            self._places.append((file, start, around))
        for key in extra_states([weight for weight, _ in plan]):
            file, start = self._room(len(NOTHING), shard_bytes)
            self._index.add_nothing(key, (file, start, len(NOTHING)))
            self._nothing.append((file, start))
        if missing := self._index.missing():
            raise ConfigurationError(
                f"the weights of a {spec.architecture} do not fill the checkpoint: "
                f"{some(missing)}"
            )

    def fixed(self) -> Iterator[Piece]:
        """See ``Target``."""
        for file, start in self._nothing:
            yield Piece(file, start, [NOTHING])

    def pieces(self, number: int, parts: list[Tensor]) -> Iterator[Piece]:
        """See ``Target``."""
        weight, _ = self.plan[number]
        file, start, around = self._places[number]
        rows = merged(weight, parts, self.spec)
        yield Piece(file, start, [around.head, *map(raw, rows), around.tail])

    def finish(self, folder: Path) -> None:
        """See ``Target``."""
        self._index.write(folder, {})
        part = folder / HF_PART
        part.mkdir(exist_ok=True)
        copy_companions(self.companions, part)
        write_config(part, {"dtype": _prevalent(self.plan)})

    def _room(self, length: int, limit: int) -> tuple[str, int]:
        """A place for so many bytes in the last file, or in a new one."""
        number = max(len(self.files) - 1, 0)
        size = self.files.get(_distcp(number), 0)
        start = -(-size // ALIGNMENT) * ALIGNMENT
        if size and start + length > limit:
            number, start = number + 1, 0
        self.files[_distcp(number)] = start + length
        return _distcp(number), start


class HfTarget:
    """A Hugging Face folder; arguments as for ``MegatronTarget``."""

    def __init__(
        self, spec: ModelSpec, plan: Plan, shard_bytes: int, companions: Path
    ) -> None:
        self.plan, self.companions = plan, companions
        announced = [
            (name, spec.shape(dims), dtype)
            for weight, dtype in plan
            for name, dims in weight.rule.hf.items()
        ]
        if twice := [n for n, c in Counter(a[0] for a in announced).items() if c > 1]:
            raise ConfigurationError(f"two weights are made of {some(twice)}")
        shards = plan_shards(announced, shard_bytes)
        names = [
            f"model-{n:05d}-of-{len(shards):05d}.safetensors"
            for n in range(1, len(shards) + 1)
        ]
        self._shards = dict(
            zip(names if len(names) > 1 else [SINGLE_NAME], shards, strict=True)
        )
        self.files = {name: shard.size for name, shard in self._shards.items()}
        self._places = {
            tensor: (name, start)
            for name, shard in self._shards.items()
            for tensor, start in shard.starts.items()
        }
        self._bytes = sum(s.size - len(s.header) for s in shards)

    def fixed(self) -> Iterator[Piece]:
        """See ``Target``."""
        for name, shard in self._shards.items():
            yield Piece(name, 0, [shard.header])

    def pieces(self, number: int, parts: list[Tensor]) -> Iterator[Piece]:
        """See ``Target``."""
        weight, _ = self.plan[number]
        for name, part in zip(weight.rule.hf, parts, strict=True):
            yield Piece(*self._places[name], [raw(part)])

    def finish(self, folder: Path) -> None:
        """See ``Target``."""
        if len(self.files) > 1:
            owners = {tensor: file for tensor, (file, _) in self._places.items()}
            write_weight_map(folder, owners, self._bytes)
        copy_companions(self.companions, folder)
        write_config(folder, {"dtype": _prevalent(self.plan)})


def merged(weight: Weight, parts: list[Tensor], spec: ModelSpec) -> list[Tensor]:
    """Tensors whose bytes, one after the other, are the Megatron weight.

    A merge that only moves rows needs no memory: which rows it moves is found by
    merging row numbers.
    """
    rows = tuple(part.shape[0] if part.dim() else 0 for part in parts)
    runs = _runs(weight.rule.transform, rows, parts[0].dim(), spec)
    if runs is None:
        return [weight.rule.transform.merge(parts, spec)]
    return [parts[which][first : first + count] for which, first, count in runs]


@lru_cache(maxsize=64)
def _runs(
    transform: Transform, rows: tuple[int, ...], dims: int, spec: ModelSpec
) -> list[tuple[int, int, int]] | None:
    """Part, first row and count of the runs of rows that a merge moves; or None."""
    if not dims:
        return None
    edges = list(itertools.accumulate(rows, initial=0))
    numbers = [torch.arange(*span) for span in itertools.pairwise(edges)]
    if dims > 1:
        # Two columns, so that a merge that moves columns is not taken for this.
        numbers = [torch.stack([2 * part, 2 * part + 1], 1) for part in numbers]
    order = transform.merge(numbers, spec)
    if dims > 1:
        if order.shape[1:] != (2,) or not torch.equal(order[:, 0] + 1, order[:, 1]):
            return None
        order = order[:, 0] // 2
    breaks = (order.diff() != 1).nonzero().flatten() + 1
    found = []
    for begin, end in itertools.pairwise([0, *breaks.tolist(), len(order)]):
        first, last = int(order[begin]), int(order[begin]) + end - begin
        for which, (low, high) in enumerate(itertools.pairwise(edges)):
            if first < high and last > low:  # a run may go on in the next part
                start = max(first, low)
                found.append((which, start - low, min(last, high) - start))
    return found


def _prevalent(plan: Plan) -> str:
    return prevalent((weight.key, weight.shape, dtype) for weight, dtype in plan)


def begin_files(folder: Path, target: Target) -> None:
    """Create the files that are missing, with what they begin with.

    They grow as weights are written: filling a file that has its size already takes
    the kernel several times as long.

    Raises:
        OSError: they could not be written.
    """
    for name in target.files:
        (folder / name).touch()
    _write_fixed(folder, [piece for piece in target.fixed() if not piece.start])


def end_files(folder: Path, target: Target) -> None:
    """Write what comes after the weights; every file then has its size.

    Raises:
        OSError: they could not be written.
    """
    _write_fixed(folder, [piece for piece in target.fixed() if piece.start])
    for name, size in target.files.items():
        os.truncate(folder / name, size)


def _write_fixed(folder: Path, pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        descriptor = os.open(folder / piece.file, os.O_WRONLY)
        try:
            write_piece(descriptor, piece)
        finally:
            os.close(descriptor)


def write_piece(descriptor: int, piece: Piece) -> None:
    """Write bytes to their place.

    Raises:
        OSError: they could not be written.
    """
    at = piece.start
    for data in piece.data:
        view = memoryview(data)
        while view:
            count = os.pwrite(descriptor, view[:_STEP], at)
            at, view = at + count, view[count:]


def _distcp(number: int) -> str:
    return f"__0_{number}.distcp"
