"""What both sides of a weight transfer agree on, and how either side is opened.

The plan of a transfer is the order, dtype and shape of every tensor that each sending
stage sends. Both sides cut it into the same buckets, so no message describes itself.
Knows no engine: one side hands over tensors, the other gets them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from nemo_rl.utils.exceptions import RefitError

Observer = Callable[[str, Tensor], None]
"""Sees every tensor as it is sent, valid during the call: ``(name, contiguous)``."""

TRANSPORTS = ("gloo", "nccl", "ipc", "files")


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a plan.

    Attributes:
        name: its Hugging Face name.
        dtype: torch's name of its type, such as ``bfloat16``.
        shape: full shape; ``()`` is a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type itself."""
        return getattr(torch, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.torch_dtype.itemsize

    def cast(self, dtype: str | None) -> TensorSpec:
        """As it travels when matrices are cast to ``dtype``.

        Vectors are few bytes and keep their precision: some, such as the bias of a
        router's choice, are used in more than the model's.
        """
        if dtype is None or len(self.shape) < 2:
            return self
        if not self.torch_dtype.is_floating_point:
            return self
        return TensorSpec(self.name, dtype, self.shape)


@dataclass(frozen=True, kw_only=True)
class RefitLink:
    """All that a process needs to take part in one transfer; travels to it by pickle.

    Attributes:
        transport: ``gloo``, ``nccl``, ``ipc`` or ``files``.
        stages: for every sending stage what it sends, in order; the stages send one
            after the other.
        num_receivers: receivers, numbered from 0; each gets every tensor.
        host: where the control store listens, see ``control.ControlStore``.
        port: its port.
        group: name of this membership; connections of one group are used again, those
            of another are closed.
        serial: number of this transfer, no two of a group alike.
        bucket_bytes: most bytes of a bucket, unless a tensor alone is larger.
        timeout_s: seconds without progress after which a side gives up.
        folder: where ``files`` puts buckets; all nodes see it and no other run uses it.
        cast: dtype that ``TensorSpec.cast`` was applied with; None: as in the model.
    """

    transport: str
    stages: tuple[tuple[TensorSpec, ...], ...]
    num_receivers: int
    host: str
    port: int
    group: str
    serial: int = 0
    bucket_bytes: int = 256 << 20
    timeout_s: float = 600.0
    folder: str | None = None
    cast: str | None = None

    @property
    def model_bytes(self) -> int:
        """Bytes of all tensors, each counted once."""
        return sum(spec.nbytes for stage in self.stages for spec in stage)


@dataclass(kw_only=True)
class TransferStats:
    """What one side of a transfer did.

    Attributes:
        bytes_moved: bytes that left this sender, or reached this receiver, padding and
            headers included.
        tensors: tensors sent or received.
        buckets: buckets of them.
        peak_extra_bytes: most memory held in buckets at a time.
        seconds: from the call to the last byte; a receiver's include what was done
            with the tensors.
        medium: what carried the bytes, such as ``shared memory``.
    """

    bytes_moved: int = 0
    tensors: int = 0
    buckets: int = 0
    peak_extra_bytes: int = 0
    seconds: float = 0.0
    medium: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a driver without this class."""
        return asdict(self)


class Sender(Protocol):
    """One stage's side; ``open_sender`` makes it."""

    stats: TransferStats

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], observe: Observer | None = None
    ) -> TransferStats:
        """Send the stage's tensors, in the plan's order; ends when all have them.

        Args:
            tensors: (name, tensor), on any device, contiguous or not.
            observe: called with every tensor as it is sent.

        Raises:
            RefitError: a tensor is not the plan's next one, somebody did not come or
                went away, or nothing moved for ``timeout_s``.
            ResourceError: no room for the buckets.
        """
        ...


class Receiver(Protocol):
    """One receiver's side; ``open_receiver`` makes it.

    A context manager: leaving it by an error tells the other side why. ``stats`` is
    complete when the iteration is.
    """

    stats: TransferStats

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor on the device) of all stages in the plan's order.

        A tensor's memory is not used again while the tensor lives, so it may be kept;
        but it is part of a bucket, and keeps all of it.

        Raises:
            RefitError: a bucket is not the one expected, the sender did not come or
                went away, or nothing came for ``timeout_s``.
        """
        ...

    def __enter__(self) -> Receiver: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_sender(
    link: RefitLink, index: int, device: torch.device | str = "cpu"
) -> Sender:
    """This process's side as sending stage ``index``.

    Args:
        link: the transfer.
        index: place in ``link.stages``.
        device: where the tensors are.
    """
    from nemo_rl.backends.refit.stream import StageSender

    return StageSender(link, index, torch.device(device))


def open_receiver(
    link: RefitLink, index: int, device: torch.device | str = "cpu"
) -> Receiver:
    """This process's side as receiver ``index`` of ``link.num_receivers``.

    Args:
        link: the transfer.
        index: which receiver this is.
        device: where the tensors are wanted.
    """
    from nemo_rl.backends.refit.stream import StageReceiver

    return StageReceiver(link, index, torch.device(device))


def refuse_index(link: RefitLink, index: int, count: int, what: str) -> None:
    """Raise if there is no such participant.

    Raises:
        RefitError: ``index`` is outside 0 .. count - 1.
    """
    if not 0 <= index < count:
        raise RefitError(
            f"there is no {what} {index} in the weight transfer {link.group!r}: it "
            f"has {count}, numbered from 0."
        )


class Stopwatch:
    """Adds the seconds of a block to ``stats.seconds``."""

    def __init__(self, stats: TransferStats) -> None:
        self._stats = stats

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._stats.seconds += time.perf_counter() - self._begin
