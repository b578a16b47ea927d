"""Broadcasts over a process group of their own: gloo between CPUs, NCCL between GPUs.

Every sending stage is rank 0 of a group with all receivers, so no stage takes part in
what another sends. The groups are made directly from torch's backends and never become
a default group: Megatron's and vLLM's stay as they are.

A sender says which bucket it has begun to send, and receivers take part only then:
gloo cannot be told to stop, so nobody may be inside it while nothing is on its way.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_rl.backends.refit.buckets import Bucket, BufferPool
from nemo_rl.backends.refit.control import Connection, PeerFailed
from nemo_rl.utils.exceptions import RefitError

_ROOT = 0
_LOOK_EVERY_S = 0.002
"""How often a receiver that is busy asks whether the next bucket is on its way."""


def _wire_device(kind: str, device: torch.device) -> torch.device:
    return device if kind == "nccl" else torch.device("cpu")


def process_group(connection: Connection, stage: int, rank: int) -> Any:
    """The group of a stage and all receivers; made when first asked for.

    Raises:
        RefitError: somebody did not come, or could not be connected to.
    """
    if stage in connection.process_groups:
        return connection.process_groups[stage]
    link = connection.link
    peers = [f"stage {stage}", *(f"receiver {i}" for i in range(link.num_receivers))]
    connection.facts(
        [name for name in peers if name != connection.who],
        purpose=f"connect to the group of stage {stage}",
    )
    store = dist.PrefixStore(f"group/{stage}", connection.store)
    # Waits here have an end of their own, which knows who is waited for. Torch's must
    # come later; that of NCCL's watchdog would end the whole process.
    wait = datetime.timedelta(seconds=1.25 * link.timeout_s + 2)
    try:
        if link.transport == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = 10 * wait + datetime.timedelta(hours=1)
            group: Any = dist.ProcessGroupNCCL(store, rank, len(peers), options)
        else:
            group = dist.ProcessGroupGloo(store, rank, len(peers), wait)
    except RuntimeError as error:
        connection.raise_if_aborted()
        raise PeerFailed(
            f"{connection.who} could not connect to the group of stage {stage} "
            f"({', '.join(peers)}): {str(error).partition(chr(10))[0]}"
        ) from error
    connection.process_groups[stage] = group
    return group


class _Broadcast:
    """One broadcast under way."""

    def __init__(self, connection: Connection, group: Any, bucket: Bucket) -> None:
        self.connection, self.group, self.bucket = connection, group, bucket
        self._work: Any = None

    def start(self, buffer: Tensor) -> _Broadcast:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = _ROOT, 0
        self.buffer = buffer
        with self._named():
            self._work = self.group.broadcast([buffer], options)
        return self

    def wait(self, peers: list[str]) -> Tensor:
        """The buffer, when everything is in it or has left it."""
        with self._named():
            self.connection.poll(self._work.is_completed, str(self.bucket), peers=peers)
            self._work.wait()
        return self.buffer

    def _named(self) -> _Lost:
        return _Lost(self.connection, self.bucket)


class _Lost:
    """Turns what torch says of a lost connection into the reason for it."""

    def __init__(self, connection: Connection, bucket: Bucket) -> None:
        self._connection, self._bucket = connection, bucket

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, RefitError):
            return
        self._connection.raise_if_aborted()
        raise PeerFailed(
            f"{self._connection.who} lost the others in the middle of {self._bucket}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


class CollectiveOutlet:
    """Sends every bucket to all receivers at once; see ``stream.Outlet``."""

    def __init__(
        self, connection: Connection, stage: int, device: torch.device
    ) -> None:
        link = connection.link
        self.medium = link.transport
        self.peak_bytes = 0
        self._connection = connection
        self._device = _wire_device(link.transport, device)
        self._peers = [f"receiver {i}" for i in range(link.num_receivers)]
        self._group = process_group(connection, stage, _ROOT)
        self._buffers: list[Tensor | None] = [None, None]
        self._under_way: list[_Broadcast | None] = [None, None]

    def buffer(self, bucket: Bucket) -> Tensor:
        """See ``stream.Outlet``."""
        turn = bucket.index % 2
        self._await(turn)
        held = self._buffers[turn]
        if held is None or held.numel() < bucket.nbytes:
            held = self._buffers[turn] = None
            held = torch.empty(bucket.nbytes, dtype=torch.uint8, device=self._device)
            self._buffers[turn] = held
            total = sum(b.numel() for b in self._buffers if b is not None)
            self.peak_bytes = max(self.peak_bytes, total)
        return held[: bucket.nbytes]

    def publish(self, bucket: Bucket, buffer: Tensor) -> None:
        """See ``stream.Outlet``."""
        broadcast = _Broadcast(self._connection, self._group, bucket)
        self._under_way[bucket.index % 2] = broadcast.start(buffer)
        self._connection.set(f"sent/{bucket.stage}", str(bucket.index))

    def finish(self) -> None:
        """See ``stream.Outlet``."""
        self._await(0)
        self._await(1)

    def close(self) -> None:
        """See ``stream.Outlet``."""
        self._buffers = [None, None]

    def _await(self, turn: int) -> None:
        broadcast, self._under_way[turn] = self._under_way[turn], None
        if broadcast is not None:
            broadcast.wait(self._peers)


class CollectiveInlet:
    """Receives a bucket while the one before is read; see ``stream.Inlet``."""

    def __init__(
        self,
        connection: Connection,
        buckets: list[Bucket],
        pool: BufferPool,
        device: torch.device,
    ) -> None:
        link = connection.link
        self.medium = link.transport
        self._connection, self._buckets, self._pool = connection, buckets, pool
        self._device = _wire_device(link.transport, device)
        stage = buckets[0].stage
        self._peers = [f"stage {stage}"]
        rank = 1 + int(connection.who.rpartition(" ")[2])
        self._group = process_group(connection, stage, rank)
        self._started: dict[int, _Broadcast] = {}
        self._sent, self._looked = -1, 0.0

    def fetch(self, bucket: Bucket) -> Tensor:
        """See ``stream.Inlet``."""
        if bucket.index not in self._started:
            self._connection.poll(
                lambda: self._is_sent(bucket), str(bucket), peers=self._peers
            )
            self._start(bucket)
        return self._started.pop(bucket.index).wait(self._peers)

    def prefetch(self, bucket: Bucket) -> None:
        """See ``stream.Inlet``."""
        now = time.monotonic()
        if bucket.index in self._started or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        if self._is_sent(bucket):
            self._start(bucket)

    def close(self) -> None:
        """See ``stream.Inlet``."""
        self._started.clear()

    def _is_sent(self, bucket: Bucket) -> bool:
        if self._sent < bucket.index:
            self._sent = int(self._connection.peek(f"sent/{bucket.stage}") or -1)
        return self._sent >= bucket.index

    def _start(self, bucket: Bucket) -> None:
        broadcast = _Broadcast(self._connection, self._group, bucket)
        broadcast.start(self._pool.take(bucket.nbytes, self._device))
        self._started[bucket.index] = broadcast
