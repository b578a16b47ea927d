"""Buckets: a plan cut into flat pieces of memory, filled here and read there.

A bucket is ``ALIGN`` bytes of header, the tensors, each at a multiple of ``ALIGN``, and
a trailer that repeats the header. Both say which bucket of which transfer and plan it
is, so one that was cut off, mixed up or left over is noticed. Whether the values
themselves are right is for digests. Knows no transport.
"""

from __future__ import annotations

import hashlib
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_rl.backends.refit.base import Observer, RefitLink, TensorSpec
from nemo_rl.utils.exceptions import RefitError

ALIGN = 512
SMALL = 64 << 10
"""Tensors up to this size are handed out as copies: one kept would keep its bucket."""
_HEADER = struct.Struct("<8sIIQQ16s")
_MAGIC = b"NRLREFIT"


@dataclass(frozen=True)
class Bucket:
    """One piece of a stage's plan.

    Attributes:
        stage: who sends it.
        index: its place among the stage's buckets.
        count: how many the stage has.
        specs: the tensors in it.
        offsets: where each begins, in bytes.
        nbytes: size, header and trailer included.
        header: what its header and trailer hold.
    """

    stage: int
    index: int
    count: int
    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    nbytes: int
    header: bytes

    def __str__(self) -> str:
        more = f" and {len(self.specs) - 1} more" if len(self.specs) > 1 else ""
        return (
            f"bucket {self.index + 1} of {self.count} of stage {self.stage} "
            f"({self.specs[0].name}{more})"
        )


def layout(link: RefitLink, stage: int) -> list[Bucket]:
    """Cut what a stage sends into buckets; the same on both sides.

    A tensor that is larger than ``link.bucket_bytes`` has a bucket of its own.
    """
    pieces: list[tuple[list[TensorSpec], list[int], int]] = []
    for spec in link.stages[stage]:
        size = _aligned(spec.nbytes)
        if not pieces or pieces[-1][2] + size + ALIGN > link.bucket_bytes:
            pieces.append(([], [], ALIGN))
        specs, offsets, end = pieces[-1]
        pieces[-1] = (specs, offsets, end + size)
        specs.append(spec)
        offsets.append(end)
    buckets = []
    for index, (specs, offsets, end) in enumerate(pieces):
        plan = hashlib.blake2b(
            repr((link.group, [(s.name, s.dtype, s.shape) for s in specs])).encode(),
            digest_size=16,
        ).digest()
        nbytes = end + ALIGN
        header = _HEADER.pack(_MAGIC, stage, index, link.serial, nbytes, plan)
        buckets.append(
            Bucket(
                stage, index, len(pieces), tuple(specs), tuple(offsets), nbytes, header
            )
        )
    return buckets


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def pack(
    bucket: Bucket,
    buffer: Tensor,
    tensors: Iterator[tuple[str, Tensor]],
    *,
    cast: bool = False,
    observe: Observer | None = None,
) -> None:
    """Fill a bucket from the next tensors.

    Args:
        bucket: what belongs in it.
        buffer: uint8 [nbytes].
        tensors: (name, tensor); as many are taken as the bucket has.
        cast: a tensor may have another dtype than the plan's.
        observe: called with every tensor as it lies in the bucket.

    Raises:
        RefitError: a tensor is not the plan's next one.
    """
    for spec, view in zip(bucket.specs, _views(bucket, buffer), strict=True):
        name, tensor = next(tensors, (None, None))
        if tensor is None:
            raise RefitError(
                f"the trainer's export ended before {spec.name}, which its plan has: "
                "the weights have changed since the plan was made."
            )
        found = name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        wanted = spec.name, found[1] if cast else spec.dtype, spec.shape
        if found != wanted:
            raise RefitError(
                f"the trainer exports {found[0]} ({found[1]} {list(found[2])}) where "
                f"its plan has {spec.name} ({spec.dtype} {list(spec.shape)}): the "
                "weights have changed since the plan was made."
            )
        view.copy_(tensor)
        if observe is not None:
            observe(spec.name, view)
    head = torch.frombuffer(bytearray(bucket.header), dtype=torch.uint8)
    buffer[: len(head)] = head
    buffer[bucket.nbytes - ALIGN :][: len(head)] = head


def unpack(bucket: Bucket, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a bucket; large ones are views of it.

    Raises:
        RefitError: this is not the bucket that should have come.
    """
    check(bucket, buffer)
    for spec, view in zip(bucket.specs, _views(bucket, buffer), strict=True):
        yield spec.name, view.clone() if spec.nbytes <= SMALL else view


def check(bucket: Bucket, buffer: Tensor) -> None:
    """Compare header and trailer with what the bucket should have.

    Raises:
        RefitError: this is not the bucket that should have come.
    """
    if buffer.numel() != bucket.nbytes:
        raise RefitError(
            f"{bucket} came with {buffer.numel()} bytes, expected {bucket.nbytes}."
        )
    size = len(bucket.header)
    tail = bucket.nbytes - ALIGN
    for what, start in (("begins", 0), ("ends", tail)):
        found = bytes(buffer[start : start + size].cpu().numpy())
        if found != bucket.header:
            raise RefitError(
                f"{bucket} was expected, and what came {what} as {_described(found)}. "
                "Weights were lost or mixed up on their way; nothing of this bucket "
                "was loaded."
            )


def _described(header: bytes) -> str:
    magic, stage, index, serial, nbytes, _ = _HEADER.unpack(header)
    if magic != _MAGIC:
        return "no bucket at all"
    return (
        f"bucket {index + 1} of stage {stage} of transfer {serial}, {nbytes} bytes, "
        "or that of another plan"
    )


def _views(bucket: Bucket, buffer: Tensor) -> Iterator[Tensor]:
    for spec, offset in zip(bucket.specs, bucket.offsets, strict=True):
        flat = buffer[offset : offset + spec.nbytes]
        yield flat.view(spec.torch_dtype).view(spec.shape)


class BufferPool:
    """Memory for the buckets that a receiver holds.

    On the CPU a buffer is used again when no tensor of it lives any more; the
    allocator of a GPU does that itself.

    Attributes:
        peak_bytes: most bytes allocated at a time; on a GPU those of the two buckets
            that were asked for last.
    """

    def __init__(self, usual: int = 0) -> None:
        """Remember the least bytes of a buffer, so that it fits other buckets too."""
        self._usual = usual
        self._owners: list[tuple[np.ndarray, weakref.ref[Any]]] = []
        self._before = 0
        self.peak_bytes = 0

    def take(self, nbytes: int, device: torch.device | str = "cpu") -> Tensor:
        """A uint8 buffer [nbytes] that nobody else has a tensor of."""
        if torch.device(device).type != "cpu":
            self.peak_bytes = max(self.peak_bytes, self._before + nbytes)
            self._before = nbytes
            return torch.empty(nbytes, dtype=torch.uint8, device=device)
        owner = self._free(nbytes)
        # The tensor keeps this view of the owner alive, and every tensor made of it
        # does: the view's end is the end of all of them.
        lease = owner[:nbytes]
        tensor = torch.from_numpy(lease)
        self._owners.append((owner, weakref.ref(lease)))
        held = sum(owner.nbytes for owner, _ in self._owners)
        self.peak_bytes = max(self.peak_bytes, held)
        return tensor

    def _free(self, nbytes: int) -> np.ndarray:
        idle = [owner for owner, lease in self._owners if lease() is None]
        self._owners = [pair for pair in self._owners if pair[1]() is not None]
        fits = [owner for owner in idle if owner.nbytes >= nbytes]
        if fits:
            return min(fits, key=lambda owner: owner.nbytes)
        return _aligned_memory(max(nbytes, self._usual))


def usual_bytes(link: RefitLink) -> int:
    """Size of the largest bucket that is none of an oversized tensor."""
    sizes = [b.nbytes for s in range(len(link.stages)) for b in layout(link, s)]
    return max((size for size in sizes if size <= link.bucket_bytes), default=0)


def _aligned_memory(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + ALIGN, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGN
    return memory[start : start + nbytes]
