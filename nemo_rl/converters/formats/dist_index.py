"""The index of a distributed checkpoint: read without running it, built piece by piece.

The format torch_dist: ``.metadata``, a pickled index of torch.distributed.checkpoint;
files in which every chunk of a tensor is a saved tensor of its own; ``common.pt``,
small state; ``metadata.json``, the name of the format.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nemo_rl.converters.formats.archive import saved
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
        if module in ("pathlib", "pathlib._local") and name.endswith("Path"):
            return PurePosixPath  # where torch wrote it, which nobody asks for
        if (module, name) == ("builtins", "getattr"):
            return _member  # how Python before 3.11.4 writes a member of an Enum
        if dtype or known or (module, name) in _INDEX_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _member(kind: Any, name: str) -> Enum:
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"it asks for an attribute {name} of {kind!r}")
    return kind[name]


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


class IndexBuilder:
    """The index of a checkpoint, as its tensors get their places."""

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}
        self._places: dict[MetadataIndex, _StorageInfo] = {}

    def add(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        at: tuple[tuple[int, ...], tuple[int, ...]],
        place: tuple[str, int, int],
    ) -> None:
        """Say where a tensor, or a part of a stacked one, lies.

        Args:
            key: name in the checkpoint.
            shape: without the stacked dimensions.
            dtype: of its elements.
            at: its index in the stacked dimensions, and their sizes.
            place: file, offset and length of its archive.

        Raises:
            ValueError: parts of one tensor differ, or a part comes twice.
        """
        index, stack = at
        box = ((*index, *[0] * len(shape)), (*[1] * len(stack), *shape))
        self.add_chunk(key, (*stack, *shape), dtype, box, place)

    def add_chunk(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        box: tuple[tuple[int, ...], tuple[int, ...]],
        place: tuple[str, int, int],
    ) -> None:
        """Say where any piece of a tensor lies.

        Args:
            key: name in the checkpoint.
            shape: of the whole tensor.
            dtype: of its elements.
            box: offsets and sizes of the piece.
            place: file, offset and length of its archive.

        Raises:
            ValueError: pieces of one tensor differ, or a piece comes twice.
        """
        size, offsets = torch.Size(shape), torch.Size(box[0])
        if key not in self._entries:
            properties = TensorProperties(dtype=dtype)
            self._entries[key] = TensorStorageMetadata(properties, size, [])
        entry = self._entries[key]
        if entry.size != size or entry.properties.dtype != dtype:
            raise ValueError(f"{key} changes its shape or dtype between its layers")
        entry.chunks.append(ChunkStorageMetadata(offsets, torch.Size(box[1])))
        self._put(MetadataIndex(key, offsets), place)

    def add_nothing(self, key: str, place: tuple[str, int, int]) -> None:
        """Say where an empty object lies."""
        self._entries[key] = BytesStorageMetadata()
        self._put(MetadataIndex(key), place)

    def add_again(self, key: str, other: str) -> None:
        """Give an entry a second name; its bytes are there once."""
        self._entries[key] = self._entries[other]
        for index, place in list(self._places.items()):
            if index.fqn == other:
                self._places[MetadataIndex(key, index.offset)] = place

    def copy(
        self, entry: Any, places: Mapping[MetadataIndex, tuple[str, int, int]]
    ) -> None:
        """Take over an entry of another checkpoint, whose pieces lie here now."""
        for index, place in places.items():
            self._entries[index.fqn] = entry
            self._put(index, place)

    def missing(self) -> list[str]:
        """Stacked tensors of which parts have not come, and how many."""
        found = []
        for key, entry in self._entries.items():
            if isinstance(entry, TensorStorageMetadata):
                have = sum(math.prod(c.sizes) for c in entry.chunks)
                if have != entry.size.numel():
                    found.append(f"{key} ({have} of {entry.size.numel()} elements)")
        return found

    def write(self, folder: Path, common: Mapping[str, Any]) -> None:
        """Write index and small state; the checkpoint is then complete."""
        self.write_index(folder)
        (folder / COMMON).write_bytes(saved(dict(common)))
        (folder / FORMAT).write_text(json.dumps(_FORMAT))

    def write_index(
        self, folder: Path, nested: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        """Write the index alone, which completes a checkpoint of torch's own format.

        Args:
            folder: of the checkpoint.
            nested: where each key stands in the nested state dict that was saved.
        """
        index = Metadata(self._entries, nested and dict(nested), self._places)
        (folder / INDEX).write_bytes(pickle.dumps(index))

    def _put(self, index: MetadataIndex, place: tuple[str, int, int]) -> None:
        if index in self._places:
            raise ValueError(f"{index.fqn} at {index.offset} comes twice")
        self._places[index] = _StorageInfo(*place)
