"""Distributed checkpoints (Megatron's torch_dist, torch's DCP), a tensor at a time.

Reads and writes them in one process, without a model and without torch.distributed.
Knows keys, shapes and bytes; which key is which weight is ``bridge.py``'s matter.

The format: ``.metadata``, a pickled index of torch.distributed.checkpoint; files in
which every chunk of a tensor is a saved tensor of its own. Megatron adds ``common.pt``,
small state, and ``metadata.json``, the name of the format.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nemo_rl.converters.dist_index import INDEX, read_index
from nemo_rl.utils.exceptions import CheckpointError

COMMON, FORMAT = "common.pt", "metadata.json"
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


@dataclass(frozen=True)
class StoredTensor:
    """What the index says of a tensor.

    Attributes:
        shape: of the whole tensor; layers are its first dimension where it has them.
        dtype: of its elements.
        chunks: how many pieces it lies in.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class DistCheckpoint:
    """A checkpoint folder, opened for reading.

    Args:
        folder: holds ``.metadata``.

    Raises:
        CheckpointError: no such checkpoint, or a damaged index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._index = read_index(self.folder)
        self._entries: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in self._index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.objects = set(self._index.state_dict_metadata) - set(self._entries)
        self.tensors = {
            key: StoredTensor(tuple(e.size), e.properties.dtype, len(e.chunks))
            for key, e in self._entries.items()
        }

    def grid(self, key: str) -> tuple[int, ...]:
        """Pieces of a tensor along each dimension."""
        chunks, depth = self._entries[key].chunks, len(self._entries[key].size)
        return tuple(len({c.offsets[d] for c in chunks}) for d in range(depth))

    def stored(self, key: str) -> Iterator[tuple[MetadataIndex, bytes]]:
        """The pieces of an entry, tensor or object, as they lie on the disk.

        Raises:
            CheckpointError: a piece is missing.
        """
        for index, place in self._index.storage_data.items():
            if index.fqn == key:
                yield index, self._bytes(key, place)

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """A tensor, or the part ``tensor[index]`` of one.

        Raises:
            CheckpointError: a chunk is missing, damaged or not of its declared shape,
                or the chunks do not cover the tensor exactly once.
        """
        entry, depth = self._entries[key], len(index)
        shape = tuple(entry.size[depth:])
        chunks = [c for c in entry.chunks if _holds(c, index) and 0 not in c.sizes]
        covered = sum(math.prod(c.sizes[depth:]) for c in chunks)
        if covered != math.prod(shape):
            raise CheckpointError(
                f"{self.folder}: the chunks of {key} hold {covered} elements, expected "
                f"{math.prod(shape)} of shape {list(shape)}"
            )
        parts = []
        for chunk in chunks:
            inner = tuple(i - o for i, o in zip(index, chunk.offsets, strict=False))
            parts.append(self._chunk(key, chunk)[inner])
        if len(parts) == 1:
            return parts[0]
        full = torch.empty(shape, dtype=entry.properties.dtype)
        for part, chunk in zip(parts, chunks, strict=True):
            spans = zip(chunk.offsets[depth:], part.shape, strict=True)
            full[tuple(slice(o, o + s) for o, s in spans)] = part
        return full

    def _bytes(self, key: str, place: _StorageInfo) -> bytes:
        path = self.folder / Path(place.relative_path).name
        if getattr(place, "transform_descriptors", None):
            raise CheckpointError(
                f"{path}: {key} is stored as {', '.join(place.transform_descriptors)}, "
                "expected tensors as they are. Save the checkpoint without extensions."
            )
        try:
            with open(path, "rb") as file:
                file.seek(place.offset)
                data = file.read(place.length)
        except OSError as error:
            raise _unreadable(path, key, place, error) from None
        if len(data) < place.length:
            raise _unreadable(path, key, place, EOFError(f"only {len(data)} are there"))
        return data

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        place = self._index.storage_data[MetadataIndex(key, chunk.offsets)]
        path = self.folder / Path(place.relative_path).name
        saved = io.BytesIO(self._bytes(key, place))
        try:
            part = torch.load(saved, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise _unreadable(path, key, place, error) from None
        dtype = self._entries[key].properties.dtype
        if part.shape != chunk.sizes or part.dtype != dtype:
            raise CheckpointError(
                f"{path}: {key} holds {list(part.shape)} {part.dtype} at "
                f"{place.offset}, the index says {list(chunk.sizes)} {dtype}"
            )
        return part


def _unreadable(
    path: Path, key: str, place: _StorageInfo, error: Exception
) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"{path}: cannot read {place.length} bytes of {key} at {place.offset}: "
        f"{reason}. The file may be cut or damaged."
    )


def _holds(chunk: ChunkStorageMetadata, index: tuple[int, ...]) -> bool:
    spans = zip(index, chunk.offsets, chunk.sizes, strict=False)
    return all(offset <= i < offset + size for i, offset, size in spans)


class DistCheckpointWriter:
    """Writes a checkpoint as its tensors come; nothing is kept in memory.

    Args:
        folder: existing, empty folder.
    """

    _FILE = "__0_0.distcp"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._entries: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}

    def add(
        self,
        key: str,
        tensor: Tensor,
        index: tuple[int, ...] = (),
        stack: tuple[int, ...] = (),
    ) -> None:
        """Write a whole tensor, or the part ``stacked[index]`` of one.

        Args:
            key: name in the checkpoint.
            tensor: on the CPU; without the stacked dimensions.
            index: which part.
            stack: sizes of the stacked dimensions, as long as ``index``.
        """
        part = tensor.reshape(*[1] * len(stack), *tensor.shape)
        offsets = (*index, *[0] * tensor.dim())
        self.add_chunk(key, part, offsets, (*stack, *tensor.shape))

    def add_chunk(
        self,
        key: str,
        part: Tensor,
        offsets: tuple[int, ...],
        size: tuple[int, ...],
        file: str = _FILE,
    ) -> None:
        """Write a piece of a tensor.

        Args:
            key: name in the checkpoint.
            part: on the CPU.
            offsets: where it lies in the whole tensor.
            size: of the whole tensor.
            file: that it is written to.

        Raises:
            ValueError: size or dtype differ from those of an earlier piece.
        """
        if key not in self._entries:
            properties = TensorProperties(dtype=part.dtype)
            self._entries[key] = TensorStorageMetadata(properties, torch.Size(size), [])
        entry = self._entries[key]
        if entry.size != torch.Size(size) or entry.properties.dtype != part.dtype:
            raise ValueError(f"{key} changes its shape or dtype between its pieces")
        start = torch.Size(offsets)
        entry.chunks.append(ChunkStorageMetadata(start, part.shape))
        # A view would be saved with all of the storage behind it.
        self._save(MetadataIndex(key, start), part.clone(), file)

    def add_nothing(self, key: str) -> None:
        """Write an empty object: the extra state of a layer that has none."""
        self._entries[key] = BytesStorageMetadata()
        self._save(MetadataIndex(key), [None], self._FILE)  # one shard, empty

    def add_again(self, key: str, other: str) -> None:
        """A second name for a tensor that was written with ``add``; no second copy."""
        self._entries[key] = self._entries[other]
        offsets = torch.Size([0] * len(self._entries[other].size))
        place = self._places[MetadataIndex(other, offsets)]
        self._places[MetadataIndex(key, offsets)] = place

    def copy(self, source: DistCheckpoint, key: str, file: str = _FILE) -> None:
        """Copy an entry, tensor or object, piece by piece, as it lies on the disk."""
        self._entries[key] = source._index.state_dict_metadata[key]
        for index, data in source.stored(key):
            handle = self._open(file)
            self._places[index] = _StorageInfo(file, handle.tell(), len(data))
            handle.write(data)

    def _open(self, file: str) -> BinaryIO:
        if file not in self._files:
            self._files[file] = open(self.folder / file, "xb")  # noqa: SIM115
        return self._files[file]

    def _save(self, index: MetadataIndex, value: Any, file: str) -> None:
        handle = self._open(file)
        start = handle.tell()
        torch.save(value, handle)
        self._places[index] = _StorageInfo(file, start, handle.tell() - start)

    def finish(self, common: Mapping[str, Any]) -> None:
        """Write index and Megatron's small state; the checkpoint is then complete."""
        self.finish_index()
        torch.save(dict(common), self.folder / COMMON)
        (self.folder / FORMAT).write_text(json.dumps(_FORMAT))

    def finish_index(self, nested: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Write the index alone, which completes a checkpoint of torch's DCP.

        Args:
            nested: where each key stands in the nested state dict that was saved.
        """
        self.close()
        index = Metadata(self._entries, nested and dict(nested), self._places)
        with open(self.folder / INDEX, "wb") as file:
            pickle.dump(index, file)

    def close(self) -> None:
        """Let go of the open files: they are complete, or the write failed."""
        for file in self._files.values():
            file.close()
        self._files.clear()
