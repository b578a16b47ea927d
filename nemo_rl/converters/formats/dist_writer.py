"""Write a distributed checkpoint as its tensors come, in one process and any files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from nemo_rl.converters.formats.archive import NOTHING, envelope, raw
from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
from nemo_rl.converters.formats.dist_index import IndexBuilder


class DistCheckpointWriter:
    """Writes a checkpoint as its tensors come; nothing is kept in memory.

    Args:
        folder: existing, empty folder.
    """

    _FILE = "__0_0.distcp"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._index = IndexBuilder()

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

        Raises:
            ValueError: parts of one tensor differ, or a part comes twice.
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
        """Write any piece of a tensor.

        Args:
            key: name in the checkpoint.
            part: on the CPU.
            offsets: where it lies in the whole tensor.
            size: of the whole tensor.
            file: that it is written to.

        Raises:
            ValueError: pieces of one tensor differ, or a piece comes twice.
        """
        shape = tuple(part.shape)
        around = envelope(shape, part.dtype)
        place = self._write(file, (around.head, raw(part), around.tail))
        self._index.add_chunk(key, size, part.dtype, (offsets, shape), place)

    def add_nothing(self, key: str) -> None:
        """Write an empty object: the extra state of a layer that has none."""
        self._index.add_nothing(key, self._write(self._FILE, (NOTHING,)))

    def add_again(self, key: str, other: str) -> None:
        """Give what was written a second name, without a second copy."""
        self._index.add_again(key, other)

    def copy(self, source: DistCheckpoint, key: str, file: str = _FILE) -> None:
        """Copy an entry, tensor or object, piece by piece, as it lies on the disk.

        Raises:
            CheckpointError: a piece cannot be read.
        """
        places = {i: self._write(file, (data,)) for i, data in source.stored(key)}
        self._index.copy(source._index.state_dict_metadata[key], places)

    def finish(self, common: Mapping[str, Any]) -> None:
        """Write index and Megatron's small state; the checkpoint is then complete."""
        self.close()
        self._index.write(self.folder, common)

    def finish_index(self, nested: Mapping[str, tuple[str, ...]] | None = None) -> None:
        """Write the index alone: see ``IndexBuilder.write_index``."""
        self.close()
        self._index.write_index(self.folder, nested)

    def close(self) -> None:
        """Let go of the open files: they are complete, or the write failed."""
        for handle in self._files.values():
            handle.close()
        self._files.clear()

    def _write(
        self, file: str, pieces: Iterable[bytes | memoryview]
    ) -> tuple[str, int, int]:
        if file not in self._files:
            self._files[file] = open(self.folder / file, "xb")  # noqa: SIM115
        handle = self._files[file]
        start = handle.tell()
        for piece in pieces:
            handle.write(piece)
        return file, start, handle.tell() - start
