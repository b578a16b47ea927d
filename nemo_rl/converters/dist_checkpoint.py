"""Megatron's distributed checkpoints (torch_dist), one tensor at a time.

Reads and writes them in one process, without a model and without torch.distributed.
Knows keys, shapes and bytes; which key is which weight is ``bridge.py``'s matter.

The format: ``.metadata``, a pickled index of torch.distributed.checkpoint; files in
which every chunk of a tensor is a saved tensor of its own; ``common.pt``, small state;
``metadata.json``, the name of the format.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from nemo_rl.utils.exceptions import CheckpointError

INDEX, COMMON, FORMAT = ".metadata", "common.pt", "metadata.json"
_FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_INDEX_MODULES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
)
_INDEX_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("collections", "OrderedDict"),
}


class _IndexUnpickler(pickle.Unpickler):
    """Builds the classes of an index and nothing else: a pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(
            getattr(torch, name, None), torch.dtype
        )
        known = module in _INDEX_MODULES and "." not in name
        if dtype or known or (module, name) in _INDEX_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_index(folder: Path) -> Metadata:
    """The index of a checkpoint, read without running what it may hold.

    Raises:
        CheckpointError: there is none, or it is damaged or no index.
    """
    path = folder / INDEX
    try:
        with open(path, "rb") as file:
            index = _IndexUnpickler(file).load()
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a Megatron checkpoint of the format torch_dist: it has "
            f"no {INDEX}. Expected the folder that holds it, such as "
            "checkpoints/step_000010/policy/weights."
        ) from None
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable index: {error}") from None
    except (ValueError, TypeError, LookupError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    if not isinstance(index, Metadata) or index.storage_data is None:
        raise CheckpointError(f"{path} holds {type(index).__name__}, not an index")
    return index


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
        self.tensors = {
            key: StoredTensor(tuple(e.size), e.properties.dtype, len(e.chunks))
            for key, e in self._entries.items()
        }

    def read(self, key: str, index: tuple[int, ...] = ()) -> Tensor:
        """A tensor, or the part ``tensor[index]`` of one.

        Raises:
            CheckpointError: a chunk is missing, damaged or not of its declared shape,
                or the chunks do not cover the tensor exactly once.
        """
        entry, depth = self._entries[key], len(index)
        shape = tuple(entry.size[depth:])
        chunks = [c for c in entry.chunks if _holds(c, index)]
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

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        place = self._index.storage_data[MetadataIndex(key, chunk.offsets)]
        path = self.folder / Path(place.relative_path).name
        try:
            with open(path, "rb") as file:
                file.seek(place.offset)
                saved = io.BytesIO(file.read(place.length))
            part = torch.load(saved, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path}: cannot read {place.length} bytes of {key} at "
                f"{place.offset}: {reason}. The file may be cut or damaged."
            ) from None
        dtype = self._entries[key].properties.dtype
        if part.shape != chunk.sizes or part.dtype != dtype:
            raise CheckpointError(
                f"{path}: {key} holds {list(part.shape)} {part.dtype} at "
                f"{place.offset}, the index says {list(chunk.sizes)} {dtype}"
            )
        return part


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
        self._file = open(folder / self._FILE, "xb")  # noqa: SIM115 - closed in finish
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
        size = torch.Size((*stack, *tensor.shape))
        offsets = torch.Size((*index, *[0] * tensor.dim()))
        part = tensor.reshape(*[1] * len(stack), *tensor.shape)
        if key not in self._entries:
            properties = TensorProperties(dtype=tensor.dtype)
            self._entries[key] = TensorStorageMetadata(properties, size, [])
        entry = self._entries[key]
        if entry.size != size or entry.properties.dtype != tensor.dtype:
            raise ValueError(f"{key} changes its shape or dtype between its layers")
        entry.chunks.append(ChunkStorageMetadata(offsets, part.shape))
        # A view would be saved with all of the storage behind it.
        self._save(MetadataIndex(key, offsets), part.clone())

    def add_nothing(self, key: str) -> None:
        """Write an empty object: the extra state of a layer that has none."""
        self._entries[key] = BytesStorageMetadata()
        self._save(MetadataIndex(key), [None])  # one shard, which is empty

    def _save(self, index: MetadataIndex, value: Any) -> None:
        start = self._file.tell()
        torch.save(value, self._file)
        length = self._file.tell() - start
        self._places[index] = _StorageInfo(self._FILE, start, length)

    def finish(self, common: Mapping[str, Any]) -> None:
        """Write index and small state; the checkpoint is then complete."""
        self._file.close()
        index = Metadata(self._entries, storage_data=self._places)
        with open(self.folder / INDEX, "wb") as file:
            pickle.dump(index, file)
        torch.save(dict(common), self.folder / COMMON)
        (self.folder / FORMAT).write_text(json.dumps(_FORMAT))

    def close(self) -> None:
        """Let go of the file; for a write that failed."""
        self._file.close()
