"""Digests of a tensor's bits that add up over its slices; knows no engine or model.

The digest of a matrix is the sum of ``(bits + 1) * a(row) * b(column)`` modulo 2^64,
where a and b are odd pseudo-random numbers of the index in the full tensor. A rank that
holds a slice sums over its part, and the parts add up to the digest of the whole,
however it was cut. An odd number can be inverted modulo 2^64: one changed element, down
to its last bit, always changes the digest. Elements, rows or slices in another place
change it but for a chance of about 2^-32 (two exchanged signs of fp32) or less. It is a
checksum against mistakes and not a cryptographic hash.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MODULUS = 1 << 64
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
"""Bytes of an element to the integers its bits are read as; 8 bytes are two of 4."""
_ROW_SEED, _COLUMN_SEED = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
_CHUNK = {"cpu": 1 << 18, "other": 1 << 21}
"""Elements worked on at once, 8 bytes and a copy each: in the cache of a CPU, and at
most 32 MiB of a GPU."""


@torch.no_grad()
def tensor_digest(
    tensor: Tensor,
    *,
    offset: Sequence[int] | None = None,
    full_shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> int:
    """Digest of a tensor, or the part of the full tensor's that a slice of it has.

    Args:
        tensor: any shape, dtype, strides and device. More than two dimensions are read
            as a matrix whose columns are the last one.
        offset: where the slice begins in the full tensor, per dimension; None for 0.
        full_shape: of the full tensor; None where ``tensor`` is that.
        dtype: what to convert elements to before their bits are read.

    Returns:
        A number in [0, 2^64). 0 for a tensor without elements.

    Raises:
        ValueError: the slice does not lie in the full tensor.
    """
    shape = tuple(full_shape) if full_shape is not None else tuple(tensor.shape)
    start = tuple(offset) if offset is not None else (0,) * len(shape)
    _check(tuple(tensor.shape), start, shape)
    if tensor.numel() == 0:
        return 0
    width = tensor.shape[-1] if tensor.dim() else 1
    rows = _row_indices(tuple(tensor.shape), start, shape)
    first = start[-1] if start else 0
    try:
        matrix = tensor.detach().view(len(rows), width)
    except RuntimeError:  # rows at uneven distances: no copy, one after the other
        joined = (shape[0] * shape[1], *shape[2:])
        parts = (
            tensor_digest(
                part,
                offset=(index * shape[1] + start[1], *start[2:]),
                full_shape=joined,
                dtype=dtype,
            )
            for index, part in enumerate(tensor.detach(), start=start[0])
        )
        return sum(parts) % MODULUS
    words = 2 if torch.empty((), dtype=dtype or tensor.dtype).element_size() == 8 else 1
    columns = _multipliers(first * words, width * words, str(tensor.device))
    most = _CHUNK["cpu" if tensor.device.type == "cpu" else "other"]
    wide = max(1, min(width, most // words))
    tall = max(1, most // (wide * words))
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for top in range(0, len(rows), tall):
        multipliers = _odd(rows[top : top + tall], _ROW_SEED).to(tensor.device)
        for left in range(0, width, wide):
            part = matrix[top : top + tall, left : left + wide]
            along = columns[left * words : (left + part.shape[1]) * words]
            bits = _bits(part if dtype is None else part.to(dtype))
            each = bits.mul_(along).sum(dim=1)
            each += along.sum()  # the + 1 of every element of the row
            total += each.mul_(multipliers).sum()
    return int(total) % MODULUS


def _bits(part: Tensor) -> Tensor:
    """Bits of a matrix as int64, a new tensor; sign extension loses nothing."""
    size = part.element_size()
    if part.is_complex() or size not in _INTEGER:
        raise ValueError(f"no digest of {part.dtype}: convert it to a real dtype")
    if size == 8:
        part = part.contiguous()
    if part.dtype == torch.bool:
        return part.to(torch.int64)
    return part.view(_INTEGER[size]).to(torch.int64)


def _row_indices(
    shape: tuple[int, ...], start: tuple[int, ...], full: tuple[int, ...]
) -> np.ndarray:
    """Index in the full tensor's matrix of every row of the slice."""
    rows = np.zeros(1, dtype=np.uint64)
    for size, begin, whole in zip(shape[:-1], start[:-1], full[:-1], strict=True):
        own = np.arange(begin, begin + size, dtype=np.uint64)
        rows = (rows[:, None] * np.uint64(whole) + own[None, :]).reshape(-1)
    return rows


@functools.lru_cache(maxsize=64)
def _multipliers(first: int, count: int, device: str) -> Tensor:
    index = np.arange(first, first + count, dtype=np.uint64)
    return _odd(index, _COLUMN_SEED).to(device)


def _odd(index: np.ndarray, seed: int) -> Tensor:
    """Odd pseudo-random int64 of indices: the finaliser of splitmix64.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    with np.errstate(over="ignore"):
        z = (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z | np.uint64(1)).view(np.int64))


def _check(
    shape: tuple[int, ...], start: tuple[int, ...], full: tuple[int, ...]
) -> None:
    fits = len(shape) == len(start) == len(full) and all(
        begin >= 0 and begin + size <= whole
        for size, begin, whole in zip(shape, start, full, strict=True)
    )
    if not fits:
        raise ValueError(
            f"a slice {list(shape)} at {list(start)} does not lie in a tensor "
            f"{list(full)}"
        )


class DigestObserver:
    """Digests of the tensors that a rank sends; a ``WeightObserver`` of a transfer.

    Vectors travel as they are trained even where matrices are cast, and the engine
    rounds them; so a vector has a digest for every dtype it may be rounded to.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[str, int]] = {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        """See one tensor as it is sent."""
        self._found[name] = sent_digests(tensor)

    def report(self) -> dict[str, dict[str, int]]:
        """Name to dtype to digest."""
        return self._found


def sent_digests(tensor: Tensor) -> dict[str, int]:
    """Digest of a tensor that is sent, by the dtype in which the engine may hold it."""
    found = {dtype_name(tensor.dtype): tensor_digest(tensor)}
    if tensor.dim() < 2 and tensor.dtype == torch.float32:
        for dtype in (torch.bfloat16, torch.float16):
            found[dtype_name(dtype)] = tensor_digest(tensor, dtype=dtype)
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """Such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")
