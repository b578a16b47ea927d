"""Files in memory without reading them: tensors are views, pages come when touched."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

# Missing from Python's mmap before 3.13. Without it the kernel may refuse to map a file
# that is larger than the memory, although a page of it is only ever read.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class MappedFile:
    """A file of weights, mapped.

    Pages that were touched count as memory of the process until they are released. A
    tensor that somebody writes to is changed in memory, never in the file.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened or mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._map = None
            if self.size:
                self._map = mmap.mmap(
                    file.fileno(),
                    0,
                    flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )

    def bytes(self, start: int, length: int) -> bytes:
        """A copy of some bytes; fewer at the end of the file."""
        return b"" if self._map is None else self._map[start : start + length]

    def tensor(self, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The bytes from ``start`` on as a tensor; nothing is copied.

        Raises:
            ValueError: the file ends before it.
        """
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if self._map is None or start + count * dtype.itemsize > self.size:
            raise ValueError(f"{self.path} ends before byte {start} + {count} elements")
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)
        return flat.reshape(shape)

    def release(self, start: int, length: int) -> None:
        """Take the pages of some bytes out of the process; they may come again."""
        if self._map is not None and length:
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, start + length - first)
