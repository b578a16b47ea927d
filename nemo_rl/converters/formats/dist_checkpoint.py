"""Distributed checkpoints (Megatron's torch_dist, torch's DCP), a tensor at a time.

Read in one process, without a model and without torch.distributed.
Knows keys, shapes and bytes; which key is which weight is ``bridge.py``'s matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from nemo_rl.converters.formats.archive import enveloped, saved_tensor
from nemo_rl.converters.formats.dist_index import COMMON, INDEX, read_index
from nemo_rl.converters.formats.mapped import MappedFile
from nemo_rl.utils.exceptions import CheckpointError

__all__ = ["COMMON", "INDEX", "DistCheckpoint", "StoredTensor", "read_index"]


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
        self._files: dict[Path, MappedFile] = {}
        self._entries: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in self._index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.tensors = {
            key: StoredTensor(tuple(e.size), e.properties.dtype, len(e.chunks))
            for key, e in self._entries.items()
        }
        self.objects = set(self._index.state_dict_metadata) - set(self._entries)

    def grid(self, key: str) -> tuple[int, ...]:
        """Pieces of a tensor along each dimension."""
        chunks, depth = self._entries[key].chunks, len(self._entries[key].size)
        return tuple(len({c.offsets[d] for c in chunks}) for d in range(depth))

    def stored(self, key: str) -> Iterator[tuple[MetadataIndex, bytes]]:
        """The pieces of an entry, tensor or object, as they lie on the disk.

        Raises:
            CheckpointError: a piece is missing or cut.
        """
        chunks = self._entries[key].chunks if key in self._entries else [None]
        for chunk in chunks:
            path, start, length = self._place(key, chunk)
            data = self._file(path, key).bytes(start, length)
            if len(data) < length:
                raise _unreadable(
                    path, key, f"the file ends {length - len(data)} early"
                )
            yield MetadataIndex(key, None if chunk is None else chunk.offsets), data

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """A tensor, or the part ``tensor[index]`` of one.

        Raises:
            CheckpointError: a chunk is missing, damaged or not of its declared shape,
                or the chunks do not cover the tensor exactly once.
        """
        entry, depth = self._entries[key], len(index)
        shape = tuple(entry.size[depth:])
        chunks = [c for c in entry.chunks if _holds(c, index) and 0 not in c.sizes]
        self._check_cover(
            key, shape, [(c.offsets[depth:], c.sizes[depth:]) for c in chunks]
        )
        if len(chunks) == 1:
            return self._chunk(key, chunks[0])[_inner(chunks[0], index)]
        full = torch.empty(shape, dtype=entry.properties.dtype)
        for chunk in chunks:
            spans = zip(chunk.offsets[depth:], chunk.sizes[depth:], strict=True)
            part = self._chunk(key, chunk)[_inner(chunk, index)]
            full[tuple(slice(o, o + s) for o, s in spans)] = part
            self._release(key, chunk)
        return full

    def release(self, key: str, index: tuple[int, ...] = ()) -> None:
        """Give back the memory of what was read; it may be read again."""
        for chunk in self._entries[key].chunks:
            if _holds(chunk, index):
                self._release(key, chunk)

    def _check_cover(self, key: str, shape: tuple[int, ...], boxes: list[Any]) -> None:
        """Raise unless boxes of (offsets, sizes) fill a shape exactly once."""
        covered = sum(math.prod(sizes) for _, sizes in boxes)
        if covered != math.prod(shape):
            raise CheckpointError(
                f"{self.folder}: the chunks of {key} hold {covered} elements, expected "
                f"{math.prod(shape)} of shape {list(shape)}"
            )
        for number, (offsets, sizes) in enumerate(boxes):
            for other, extent in boxes[:number]:
                spans = zip(offsets, sizes, other, extent, strict=True)
                if all(o < q + e and q < o + s for o, s, q, e in spans):
                    raise CheckpointError(
                        f"{self.folder}: chunks of {key} at {list(other)} and "
                        f"{list(offsets)} overlap"
                    )

    def _place(
        self, key: str, chunk: ChunkStorageMetadata | None
    ) -> tuple[Path, int, int]:
        offsets = None if chunk is None else chunk.offsets
        try:
            place = self._index.storage_data[MetadataIndex(key, offsets)]
            name, start, length = place.relative_path, place.offset, place.length
        except (KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{self.folder / INDEX} does not say where {key} at "
                f"{list(offsets or ())} lies: {error!r}"
            ) from None
        if getattr(place, "transform_descriptors", None):
            raise CheckpointError(
                f"{self.folder}: {key} is stored as "
                f"{' and '.join(place.transform_descriptors)}, expected plain tensors. "
                "Save the checkpoint without extensions of the storage writer."
            )
        if Path(name).name != name:
            raise CheckpointError(
                f"{self.folder / INDEX} names {name!r}, which is not a file of its "
                "folder"
            )
        return self.folder / name, start, length

    def _file(self, path: Path, key: str) -> MappedFile:
        if path not in self._files:
            try:
                self._files[path] = MappedFile(path)
            except OSError as error:
                raise _unreadable(path, f"a piece of {key}", error) from None
        return self._files[path]

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        path, start, length = self._place(key, chunk)
        dtype = self._entries[key].properties.dtype
        try:
            file, shape = self._file(path, key), tuple(chunk.sizes)
            part = enveloped(file, start, length, shape, dtype)
            if part is None:
                part = saved_tensor(file, start, length)
        except ValueError as error:
            what = f"{length} bytes of {key} at {start}"
            raise _unreadable(path, what, error) from None
        if part.shape != chunk.sizes or part.dtype != dtype:
            raise CheckpointError(
                f"{path}: {key} holds {list(part.shape)} {part.dtype} at "
                f"{start}, the index says {list(chunk.sizes)} {dtype}"
            )
        return part

    def _release(self, key: str, chunk: ChunkStorageMetadata) -> None:
        path, start, length = self._place(key, chunk)
        if path in self._files:
            self._files[path].release(start, length)


def _unreadable(path: Path, what: str, why: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot read {what}: {why}. The file may be cut or damaged."
    )


def _holds(chunk: ChunkStorageMetadata, index: tuple[int, ...]) -> bool:
    spans = zip(index, chunk.offsets, chunk.sizes, strict=False)
    return all(offset <= i < offset + size for i, offset, size in spans)


def _inner(chunk: ChunkStorageMetadata, index: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i - o for i, o in zip(index, chunk.offsets, strict=False))
