"""StageSender and StageReceiver: buckets of tensors over any transport.

Between a plan and a transport: what is common to all of them, such as whose turn it is
and what is counted. The transports know buckets, this knows tensors.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from nemo_rl.backends.refit.base import (
    Observer,
    RefitLink,
    Stopwatch,
    TransferStats,
    refuse_index,
)
from nemo_rl.backends.refit.buckets import (
    Bucket,
    BufferPool,
    layout,
    pack,
    unpack,
    usual_bytes,
)
from nemo_rl.backends.refit.control import Connection, connect
from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import RefitError


class Outlet(Protocol):
    """A transport's end at a sending stage; one per transfer."""

    medium: str
    peak_bytes: int

    def buffer(self, bucket: Bucket) -> Tensor:
        """Memory [nbytes] to fill; waits until one of the two buffers is free."""
        ...

    def publish(self, bucket: Bucket, buffer: Tensor) -> None:
        """Put the filled buffer on its way; it may still be under way afterwards."""
        ...

    def finish(self) -> None:
        """Wait until everything has left."""
        ...

    def close(self) -> None:
        """Give up memory and files, also in the middle of something."""
        ...


class Inlet(Protocol):
    """A transport's end at a receiver, for one stage."""

    medium: str

    def fetch(self, bucket: Bucket) -> Tensor:
        """Wait for the next bucket; its bytes, in memory that nobody else uses."""
        ...

    def prefetch(self, bucket: Bucket) -> None:
        """Begin with the bucket after the one fetched last, if that is possible now."""
        ...

    def close(self) -> None:
        """Give up memory and files, also in the middle of something."""
        ...


def outlet(connection: Connection, stage: int, device: torch.device) -> Outlet:
    """The sending end of the link's transport.

    Raises:
        RefitError: there is no such transport.
    """
    kind = connection.link.transport
    if kind in ("gloo", "nccl"):
        from nemo_rl.backends.refit.collective import CollectiveOutlet

        return CollectiveOutlet(connection, stage, device)
    if kind == "ipc":
        from nemo_rl.backends.refit.ipc import open_outlet

        return open_outlet(connection, stage, device)
    if kind == "files":
        from nemo_rl.backends.refit.files import FileOutlet

        return FileOutlet(connection, stage)
    raise _unknown(kind)


def inlet(
    connection: Connection,
    buckets: list[Bucket],
    pool: BufferPool,
    device: torch.device,
) -> Inlet:
    """The receiving end of the link's transport, for buckets of one stage.

    Raises:
        RefitError: there is no such transport.
    """
    kind = connection.link.transport
    if kind in ("gloo", "nccl"):
        from nemo_rl.backends.refit.collective import CollectiveInlet

        return CollectiveInlet(connection, buckets, pool, device)
    if kind == "ipc":
        from nemo_rl.backends.refit.ipc import IpcInlet

        return IpcInlet(connection, buckets, pool, device)
    if kind == "files":
        from nemo_rl.backends.refit.files import FileInlet

        return FileInlet(connection, buckets, pool)
    raise _unknown(kind)


def _unknown(kind: str) -> RefitError:
    return RefitError(f"no transport {kind!r}: expected gloo, nccl, ipc or files.")


class StageSender:
    """``base.Sender`` over any transport."""

    def __init__(self, link: RefitLink, index: int, device: torch.device) -> None:
        refuse_index(link, index, len(link.stages), "stage")
        self._link, self._index, self._device = link, index, device
        self.stats = TransferStats()

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], observe: Observer | None = None
    ) -> TransferStats:
        """See ``base.Sender``."""
        connection = connect(self._link, f"stage {self._index}")
        try:
            with Stopwatch(self.stats):
                connection.arrive()
                self._await_turn(connection)
                self._send(connection, iter(tensors), observe)
                if self._index + 1 < len(self._link.stages):
                    connection.set(f"turn/{self._index + 1}", "")
        except BaseException as error:
            connection.give_up(error)
            raise
        return self.stats

    def _await_turn(self, connection: Connection) -> None:
        if self._index == 0:
            return
        turn, before = f"turn/{self._index}", f"stage {self._index - 1}"
        connection.wait([turn], f"its turn after {before}", peers=[before])
        connection.delete(turn)

    def _send(
        self,
        connection: Connection,
        tensors: Iterator[tuple[str, Tensor]],
        observe: Observer | None,
    ) -> None:
        stats, buckets = self.stats, layout(self._link, self._index)
        if not buckets:
            return
        out = outlet(connection, self._index, self._device)
        stats.medium = out.medium
        try:
            for bucket in buckets:
                pulse.beat()
                buffer = out.buffer(bucket)
                pack(
                    bucket,
                    buffer,
                    tensors,
                    cast=self._link.cast is not None,
                    observe=observe,
                )
                out.publish(bucket, buffer)
                connection.progress(f"stage {self._index} sent {bucket}")
                stats.bytes_moved += bucket.nbytes
                stats.tensors += len(bucket.specs)
                stats.buckets += 1
            surplus = next(tensors, None)
            if surplus is not None:
                raise RefitError(
                    f"the trainer exports {surplus[0]} after all that its plan has: "
                    "the weights have changed since the plan was made."
                )
            out.finish()
        finally:
            stats.peak_extra_bytes = out.peak_bytes
            out.close()


class StageReceiver:
    """``base.Receiver`` over any transport."""

    def __init__(self, link: RefitLink, index: int, device: torch.device) -> None:
        refuse_index(link, index, link.num_receivers, "receiver")
        self._link, self._index, self._device = link, index, device
        self._connection: Connection | None = None
        self._entered = False
        self.stats = TransferStats()

    def __enter__(self) -> StageReceiver:
        self._entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop(error or GeneratorExit())

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._connection = connect(self._link, f"receiver {self._index}")
        begin = time.perf_counter()
        try:
            yield from self._all(self._connection)
        except GeneratorExit as error:
            # The end of the with block knows why nobody wants more.
            if not self._entered:
                self._stop(error)
            raise
        except BaseException as error:
            self._stop(error)
            raise
        self._connection = None
        self.stats.seconds = time.perf_counter() - begin

    def _stop(self, error: BaseException) -> None:
        """Tell the others, unless all weights have come."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.give_up(error)

    def _all(self, connection: Connection) -> Iterator[tuple[str, Tensor]]:
        connection.arrive(gpus=_visible_gpus(self._device))
        pool = BufferPool(usual_bytes(self._link))
        for stage in range(len(self._link.stages)):
            yield from self._receive(connection, stage, pool)
        self.stats.peak_extra_bytes = pool.peak_bytes

    def _receive(
        self, connection: Connection, stage: int, pool: BufferPool
    ) -> Iterator[tuple[str, Tensor]]:
        stats, buckets = self.stats, layout(self._link, stage)
        if not buckets:
            return
        source = inlet(connection, buckets, pool, self._device)
        try:
            for bucket, following in zip_longest(buckets, buckets[1:]):
                named = unpack(bucket, source.fetch(bucket))
                for place, (name, tensor) in enumerate(named):
                    # Whoever reads still had the last tensor of the bucket before when
                    # it asked for the first of this one: a buffer more would be needed.
                    if place and following is not None:
                        source.prefetch(following)
                    yield name, tensor.to(self._device)
                    # No name here may keep a bucket's memory.
                    del tensor
                del named
                stats.bytes_moved += bucket.nbytes
                stats.tensors += len(bucket.specs)
                stats.buckets += 1
        finally:
            stats.medium = source.medium
            source.close()


def _visible_gpus(device: torch.device) -> list[str]:
    """Ids of the GPUs that this process could map memory of."""
    if device.type != "cuda":
        return []
    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]
