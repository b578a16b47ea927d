"""What ``torch.save`` puts around the bytes of a tensor, without copying the bytes.

A saved tensor is a zip archive that stores its bytes as they are. torch can write and
read such an archive without the bytes (``torch.serialization.skip_data``), so they go
from one file to another without a stop in between.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import sys
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, cast

import torch
from torch import Tensor
from torch.serialization import skip_data

from nemo_rl.converters.formats.mapped import MappedFile

ALIGNMENT = 64
"""Of the bytes of a tensor within its archive, and of archives within a file."""


@dataclass(frozen=True)
class Envelope:
    """The bytes of an archive before and after those of its tensor."""

    head: bytes
    tail: bytes

    @property
    def size(self) -> int:
        """Bytes of both."""
        return len(self.head) + len(self.tail)


class _Hollow(io.RawIOBase):
    """Keeps what is written and where the one gap is."""

    def __init__(self) -> None:
        self.parts: list[bytearray] = [bytearray()]
        self.gap = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self.parts[-1] += view
        return view.nbytes

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_CUR:
            raise OSError("only forward")
        self.gap += offset
        self.parts.append(bytearray())
        return self.tell()

    def tell(self) -> int:
        return sum(map(len, self.parts)) + self.gap


@lru_cache(maxsize=4096)
def envelope(shape: tuple[int, ...], dtype: torch.dtype) -> Envelope:
    """The envelope of a contiguous tensor on the CPU."""
    file = _Hollow()
    hollow = torch.empty(shape, dtype=dtype)  # its memory is never touched
    with skip_data():
        torch.save(hollow, cast(IO[bytes], file))
    if len(file.parts) != 2 or file.gap != hollow.nbytes:
        raise RuntimeError(
            f"torch {torch.__version__} saves a tensor in another way than expected: "
            f"{len(file.parts)} parts with a gap of {file.gap} bytes"
        )
    return Envelope(bytes(file.parts[0]), bytes(file.parts[1]))


def saved(value: object) -> bytes:
    """``torch.save`` of something small."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


NOTHING = saved([None])
"""One shard of an object, which is empty."""


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; not copied where they lie side by side."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


class _Window(io.RawIOBase):
    """A part of a mapped file as a file."""

    def __init__(self, file: MappedFile, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}
        self._at = base[whence] + offset
        if self._at < 0:
            raise OSError("before the start")
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = max(min(len(view), self._length - self._at), 0)
        data = self._file.bytes(self._start + self._at, count)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def enveloped(
    file: MappedFile,
    start: int,
    length: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Tensor | None:
    """What ``saved_tensor`` gives, where the envelope is exactly the one made here.

    No archive is read for that, which matters for thousands of small tensors.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > length:
        return None
    around = envelope(shape, dtype)
    at, end = start + len(around.head), start + length - len(around.tail)
    if (
        end - at != nbytes
        or file.bytes(start, len(around.head)) != around.head
        or file.bytes(end, len(around.tail)) != around.tail
    ):
        return None
    return file.tensor(at, shape, dtype)


def saved_tensor(file: MappedFile, start: int, length: int) -> Tensor:
    """The tensor of an archive within a file, as a view of the file.

    Args:
        file: holds the archive.
        start: of the archive in the file.
        length: of the archive.

    Raises:
        ValueError: there is no archive of one tensor, or the file ends before it.
    """
    if start < 0 or length < 0 or start + length > file.size:
        raise ValueError(f"the file ends at byte {file.size}")
    window = cast(IO[bytes], _Window(file, start, length))
    try:
        with skip_data():
            hollow = torch.load(window, map_location="cpu", weights_only=True)
        window.seek(0)
        with zipfile.ZipFile(window) as archive:
            records = {r.filename.partition("/")[2]: r for r in archive.infolist()}
            order = (
                archive.read(records["byteorder"]) if "byteorder" in records else b""
            )
        data = [r for name, r in records.items() if name.startswith("data/")]
        if not isinstance(hollow, Tensor) or len(data) != 1 or data[0].compress_type:
            raise ValueError("it holds no single tensor")
        if order.decode() not in ("", sys.byteorder):
            raise ValueError(f"its bytes are in {order.decode()} endian order")
        stored, nbytes = data[0].file_size, hollow.untyped_storage().nbytes()
        if stored != nbytes:
            raise ValueError(f"it holds {stored} bytes for a tensor of {nbytes}")
        # The local header: 30 bytes, of which the last four are two lengths.
        local = start + data[0].header_offset
        lengths = file.bytes(local + 26, 4)
        at = (
            local
            + 30
            + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
        )
        if at + nbytes > start + length:
            raise ValueError("its tensor ends after it")
    except (zipfile.BadZipFile, struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"no archive of a tensor: {error}") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(reason) from None
    flat = file.tensor(at, (nbytes // hollow.dtype.itemsize,), hollow.dtype)
    return flat.as_strided(hollow.shape, hollow.stride(), hollow.storage_offset())
