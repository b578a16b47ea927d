"""Buckets as files in a folder that all nodes see; for machines without a fast network.

A file is written under a temporary name, renamed, announced, read by every receiver and
deleted: at most two exist. The folder belongs to one run: what an earlier one left in
it is removed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nemo_rl.backends.refit.buckets import Bucket, BufferPool
from nemo_rl.backends.refit.control import Connection
from nemo_rl.backends.refit.handshake import Announcer, Listener
from nemo_rl.utils.exceptions import ConfigurationError, RefitError, ResourceError

_PREFIX = "refit-stage"


class FileOutlet:
    """Writes buckets; see ``stream.Outlet``. Holds one in memory, two on the disk."""

    medium = "files"

    def __init__(self, connection: Connection, stage: int) -> None:
        self._folder = _folder(connection)
        self._prefix = f"{_PREFIX}{stage}-"
        self._announcer = Announcer(connection)
        self._buffer: Tensor | None = None
        self._there: list[tuple[Bucket, Path]] = []
        self.peak_bytes = 0
        self._remove_leftovers()

    def buffer(self, bucket: Bucket) -> Tensor:
        """See ``stream.Outlet``."""
        if self._buffer is None or self._buffer.numel() < bucket.nbytes:
            self._buffer = None
            self._buffer = torch.empty(bucket.nbytes, dtype=torch.uint8)
            self.peak_bytes = max(self.peak_bytes, bucket.nbytes)
        return self._buffer[: bucket.nbytes]

    def publish(self, bucket: Bucket, buffer: Tensor) -> None:
        """See ``stream.Outlet``."""
        while len(self._there) > 1:
            self._take_back()
        path = self._folder / f"{self._prefix}{bucket.index:06d}"
        hidden = path.with_name(f".{path.name}")
        # Known before it exists, so that it goes whatever happens.
        self._there.append((bucket, path))
        try:
            with open(hidden, "wb", buffering=0) as file:
                rest = buffer.numpy().data
                while rest:
                    rest = rest[file.write(rest) :]
            hidden.rename(path)
        except OSError as error:
            raise ResourceError(
                f"a bucket of {bucket.nbytes / 2**20:.1f} MiB could not be written to "
                f"{self._folder}: {error.strerror}. Two must fit: free space there, "
                "lower policy.generation.refit.bucket_mib or name another folder."
            ) from error
        self._announcer.announce(bucket, path=str(path), nbytes=bucket.nbytes)

    def finish(self) -> None:
        """See ``stream.Outlet``."""
        while self._there:
            self._take_back()

    def close(self) -> None:
        """See ``stream.Outlet``."""
        self._buffer = None
        self._remove_leftovers()

    def _take_back(self) -> None:
        bucket, path = self._there[0]
        self._announcer.await_copies(bucket)
        path.unlink(missing_ok=True)
        del self._there[0]

    def _remove_leftovers(self) -> None:
        for pattern in (f"{self._prefix}*", f".{self._prefix}*"):
            for path in self._folder.glob(pattern):
                path.unlink(missing_ok=True)


class FileInlet:
    """Reads buckets; see ``stream.Inlet``."""

    medium = "files"

    def __init__(
        self, connection: Connection, buckets: list[Bucket], pool: BufferPool
    ) -> None:
        del buckets
        self._who = connection.who
        self._listener, self._pool = Listener(connection), pool

    def fetch(self, bucket: Bucket) -> Tensor:
        """See ``stream.Inlet``."""
        facts = self._listener.await_bucket(bucket)
        path = Path(facts["path"])
        buffer = self._pool.take(bucket.nbytes)
        try:
            got = _read(path, buffer)
        except OSError as error:
            raise RefitError(
                f"{self._who} cannot read {path}, which the trainer has written: "
                f"{error.strerror}. policy.generation.refit.folder must be the same "
                "folder on every node."
            ) from error
        if got != bucket.nbytes:
            raise RefitError(
                f"{path} ended after {got} bytes, expected {bucket.nbytes} of {bucket}:"
                " the file system of policy.generation.refit.folder lost a part."
            )
        self._listener.copied(bucket)
        return buffer

    def prefetch(self, bucket: Bucket) -> None:
        """Nothing: the file waits where it is."""

    def close(self) -> None:
        """See ``stream.Inlet``."""


def _read(path: Path, buffer: Tensor) -> int:
    """Fill the buffer; how many bytes the file had for it, one more if it has more."""
    rest, got = buffer.numpy().data, 0
    with open(path, "rb", buffering=0) as file:
        while rest and (count := file.readinto(rest)):
            got, rest = got + count, rest[count:]
        return got + len(file.read(1))


def _folder(connection: Connection) -> Path:
    name = connection.link.folder
    if name is None:
        raise ConfigurationError(
            "the transport files needs policy.generation.refit.folder: a folder that "
            "all nodes see."
        )
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"policy.generation.refit.folder {folder} cannot be made: {error.strerror}."
        ) from error
    return folder
