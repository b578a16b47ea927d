"""Buckets in memory that processes of one machine share: host memory, or a GPU's.

Two places take turns. A receiver copies a bucket out of its place before it
acknowledges it, so nobody reads what is being written. Where every receiver sees the
sender's GPU the places are in its memory (``cuda_ipc.py``), else in /dev/shm; which it
was is in the statistics.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_rl.backends.refit.buckets import Bucket, BufferPool
from nemo_rl.backends.refit.control import Connection
from nemo_rl.backends.refit.handshake import Announcer, Listener
from nemo_rl.backends.refit.stream import Outlet
from nemo_rl.utils.exceptions import RefitError, ResourceError

SHM = Path("/dev/shm")
_PREFIX = "nemo_rl-refit-"


def open_outlet(connection: Connection, stage: int, device: torch.device) -> Outlet:
    """The sending end: in GPU memory if all receivers can map it, else in /dev/shm.

    Raises:
        RefitError: a receiver is on another machine, or did not come.
    """
    link = connection.link
    names = [f"receiver {index}" for index in range(link.num_receivers)]
    receivers = connection.facts(names, purpose="share memory with them")
    here = os.uname().nodename
    for name, facts in zip(names, receivers, strict=True):
        if facts["host"] != here:
            raise RefitError(
                f"{name} is on host {facts['host']} and {connection.who} on {here}: "
                "processes of two machines share no memory. Set "
                "policy.generation.refit.transport to gloo, nccl or files."
            )
    if device.type == "cuda":
        from nemo_rl.backends.refit.cuda_ipc import CudaOutlet, gpu_id

        if all(gpu_id(device) in facts["gpus"] for facts in receivers):
            return CudaOutlet(connection, device)
    return SharedMemoryOutlet(connection, stage)


class _Place:
    """Shared memory of one bucket at a time; grows, never shrinks."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._map: mmap.mmap | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        # A file that nobody has locked is one whose owner has died.
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def memory(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of the place."""
        if self.size < nbytes:
            self._map = None
            # Without this, memory that is not there would be noticed by a signal.
            try:
                os.posix_fallocate(self._file, 0, nbytes)
            except OSError as error:
                free = os.statvfs(SHM)
                raise ResourceError(
                    f"{SHM} has {free.f_bavail * free.f_frsize / 2**20:.0f} MiB left, "
                    f"and a bucket takes {nbytes / 2**20:.1f} MiB ({error.strerror}); "
                    "two must fit. Give the container more (docker run --shm-size), "
                    "lower policy.generation.refit.bucket_mib, or set its transport "
                    "to gloo."
                ) from error
            self.size = nbytes
            self._map = mmap.mmap(self._file, nbytes)
        assert self._map is not None
        return torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes)

    def hide(self) -> None:
        """Take the name away: the memory goes with the last process that has it."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give it back."""
        self.hide()
        self._map = None
        os.close(self._file)


class SharedMemoryOutlet:
    """Sends through /dev/shm; see ``stream.Outlet``."""

    medium = "shared memory"

    def __init__(self, connection: Connection, stage: int) -> None:
        remove_leftovers()
        link = connection.link
        self._stem = f"{_PREFIX}{link.group}-{link.serial}-{stage}-"
        self._announcer = Announcer(connection)
        self._places: list[_Place] = []
        self._under_way: list[Bucket | None] = [None, None]
        self.peak_bytes = 0

    def buffer(self, bucket: Bucket) -> Tensor:
        """See ``stream.Outlet``."""
        turn = bucket.index % 2
        self._await(turn)
        if turn == len(self._places):
            self._places.append(_Place(SHM / f"{self._stem}{turn}"))
        memory = self._places[turn].memory(bucket.nbytes)
        self.peak_bytes = max(self.peak_bytes, sum(p.size for p in self._places))
        return memory

    def publish(self, bucket: Bucket, buffer: Tensor) -> None:
        """See ``stream.Outlet``."""
        turn = bucket.index % 2
        self._under_way[turn] = bucket
        path = str(self._places[turn].path)
        self._announcer.announce(bucket, place=turn, path=path)

    def finish(self) -> None:
        """See ``stream.Outlet``."""
        self._await(0)
        self._await(1)

    def close(self) -> None:
        """See ``stream.Outlet``."""
        while self._places:
            self._places.pop().close()

    def _await(self, turn: int) -> None:
        bucket, self._under_way[turn] = self._under_way[turn], None
        if bucket is not None:
            self._announcer.await_copies(bucket)
            # All receivers have opened it by now.
            self._places[turn].hide()


class IpcInlet:
    """Copies buckets out of shared memory; see ``stream.Inlet``."""

    medium = SharedMemoryOutlet.medium

    def __init__(
        self,
        connection: Connection,
        buckets: list[Bucket],
        pool: BufferPool,
        device: torch.device,
    ) -> None:
        del buckets
        self._who, self._device, self._pool = connection.who, device, pool
        self._index = int(connection.who.rpartition(" ")[2])
        self._listener = Listener(connection)
        self._files: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._mapped_gpu: Any = None

    def fetch(self, bucket: Bucket) -> Tensor:
        """See ``stream.Inlet``."""
        facts = self._listener.await_bucket(bucket)
        if "handles" in facts:
            buffer = self._from_gpu(bucket, facts)
        else:
            buffer = self._pool.take(bucket.nbytes)
            buffer.copy_(self._shared(facts, bucket.nbytes))
        self._listener.copied(bucket)
        return buffer

    def prefetch(self, bucket: Bucket) -> None:
        """Nothing: the bucket waits where it is."""

    def close(self) -> None:
        """See ``stream.Inlet``."""
        self._maps.clear()
        while self._files:
            os.close(self._files.popitem()[1])
        if self._mapped_gpu is not None:
            self._mapped_gpu.close()

    def _shared(self, facts: dict[str, Any], nbytes: int) -> Tensor:
        place, path = facts["place"], facts["path"]
        if place not in self._files:
            try:
                self._files[place] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise RefitError(
                    f"{self._who} cannot open {path}: {error.strerror}. It shares no "
                    f"{SHM} with the trainer: run both in one container, or set "
                    "policy.generation.refit.transport to gloo."
                ) from error
        there = self._maps.get(place)
        if there is None or len(there) < nbytes:
            if os.fstat(self._files[place]).st_size < nbytes:
                raise RefitError(f"{path} is shorter than its {nbytes} bytes.")
            there = self._maps[place] = mmap.mmap(self._files[place], nbytes)
        return torch.frombuffer(there, dtype=torch.uint8, count=nbytes)

    def _from_gpu(self, bucket: Bucket, facts: dict[str, Any]) -> Tensor:
        from nemo_rl.backends.refit.cuda_ipc import MappedGpu

        if self._mapped_gpu is None:
            self._mapped_gpu = MappedGpu(self._index)
            self.medium = MappedGpu.medium
        buffer = self._pool.take(bucket.nbytes, self._device)
        buffer.copy_(self._mapped_gpu.memory(facts, bucket.nbytes))
        # The copy must have ended before the place is written again.
        torch.cuda.current_stream(self._device).synchronize()
        return buffer


def remove_leftovers() -> None:
    """Remove shared memory of processes that were killed before they could."""
    for path in SHM.glob(f"{_PREFIX}*"):
        # Another user's, or just removed by somebody else.
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
            finally:
                os.close(file)
