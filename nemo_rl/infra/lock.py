"""One run per folder: a lock file that names its holder and outlives no one.

The lock holds pid, host and a heartbeat. A holder on this host is alive when its
process is; a holder elsewhere is alive when its heartbeat moves while we watch, so
clocks of different nodes are never compared.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.files import write_json

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"


@dataclass(frozen=True)
class Holder:
    """Who holds a folder: enough to find the process and to tell it from others."""

    token: str
    pid: int
    host: str
    pid_namespace: str
    process_start: str
    since: str

    def describe(self) -> str:
        """For messages: "process 4711 on host node3 since 2026-01-31 12:00:00"."""
        return f"process {self.pid} on host {self.host} since {self.since}"


class DirectoryLock:
    """The right to write into `directory`, held by at most one run.

    Args:
        directory: the folder; the lock is the file `.lock` in it.
        heartbeat_s: how often the holder touches its lock.
        patience_s: how long a holder on another host may show no heartbeat before
            its lock counts as left behind. Several heartbeats long.
    """

    def __init__(
        self, directory: Path, *, heartbeat_s: float = 10.0, patience_s: float = 35.0
    ) -> None:
        """Describe the lock; `acquire` takes it."""
        self.directory = directory
        self.path = directory / LOCK_NAME
        self.heartbeat_s = heartbeat_s
        self.patience_s = patience_s
        self._mine: Holder | None = None
        self._stop = threading.Event()

    def acquire(self) -> None:
        """Take the lock, or say who has it. Taking it twice is harmless.

        Raises:
            CheckpointError: another live run holds the folder.
            OSError: the folder cannot be written.
        """
        if self._mine is not None and self.is_mine():
            return
        if not self._try_take(absent_token=None):
            holder = read_holder(self.path)
            if not self._moves(holder):
                token = holder.token if holder else ""
                if self._try_take(absent_token=token):
                    self._start_heartbeat()
                    return
            self._mine = None
            raise self._refusal(read_holder(self.path) or holder)
        self._start_heartbeat()

    def is_mine(self) -> bool:
        """True while nobody has taken the folder over from this object."""
        if self._mine is None or self._mine.pid != os.getpid():
            return False
        holder = read_holder(self.path)
        return holder is not None and holder.token == self._mine.token

    def release(self) -> None:
        """Give the folder back; a lock that is no longer ours stays untouched."""
        self._stop.set()
        if self.is_mine():
            self.path.unlink(missing_ok=True)
        self._mine = None

    @property
    def was_taken(self) -> bool:
        """True after `acquire`, until `release`, also when somebody took over."""
        return self._mine is not None

    def holder(self) -> Holder | None:
        """Who holds the folder now, by the lock file."""
        return read_holder(self.path)

    def _try_take(self, absent_token: str | None) -> bool:
        """Write our lock if the present one is free, dead, or `absent_token`'s."""
        with self._guard():
            holder = read_holder(self.path)
            exists = self.path.exists()
            free = (
                not exists
                or (holder is not None and _is_gone(holder))
                or (absent_token is not None and absent_token == _token(holder))
            )
            if not free:
                return False
            if exists:
                who = holder.describe() if holder else "an unreadable lock"
                log.info("%s: taking over from %s", self.path, who)
            self._mine = _this_process()
            write_json(self.path, asdict(self._mine))
        # Where the file system has no locks, two starters may both have come here:
        # the later one's name stands in the file, and the other one withdraws.
        return self.is_mine()

    def _moves(self, holder: Holder | None) -> bool:
        """Watch the lock of another host: True as soon as it is touched or changes.

        Another process of *this* host needs no watching: it was found alive.
        """
        if holder is not None and _is_local(holder):
            return True
        log.warning(
            "%s is locked by %s; watching it for %.0f s to see whether that run "
            "is still alive",
            self.directory,
            holder.describe() if holder else "an unknown process",
            self.patience_s,
        )
        first = self._beat()
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.heartbeat_s / 2))
            if self._beat() != first:
                return True
        return False

    def _beat(self) -> tuple[int, str]:
        """What a heartbeat changes. Opening the file makes NFS ask the server."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return os.fstat(file.fileno()).st_mtime_ns, file.read()
        except FileNotFoundError:
            return 0, ""

    def _start_heartbeat(self) -> None:
        self._stop.set()
        self._stop = threading.Event()
        thread = threading.Thread(
            target=self._touch_until, args=(self._stop,), daemon=True
        )
        thread.start()
        atexit.register(self.release)

    def _touch_until(self, stop: threading.Event) -> None:
        while not stop.wait(self.heartbeat_s):
            if not self.is_mine():
                return
            # A full or vanished file system must not end the run from a thread:
            # the next save meets the same fault and reports it.
            with contextlib.suppress(OSError):
                os.utime(self.path)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Let one process at a time read and replace the lock file."""
        with open(self.directory / f"{LOCK_NAME}-guard", "a") as file:
            # Some cluster file systems have no flock; the check after the write
            # in _try_take is what is left there.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _refusal(self, holder: Holder | None) -> CheckpointError:
        who = holder.describe() if holder else "another run"
        return CheckpointError(
            f"{self.directory} is in use by {who}. Two runs in one folder would "
            "overwrite each other's checkpoints: wait for that run, stop it, or "
            "choose another checkpointing.checkpoint_dir. (The lock of a run that "
            "has died is taken over without help.)"
        )


def read_holder(path: Path) -> Holder | None:
    """The holder named in a lock file; None where it is absent or unreadable."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def _token(holder: Holder | None) -> str:
    return holder.token if holder else ""


def _this_process() -> Holder:
    return Holder(
        token=uuid.uuid4().hex,
        pid=os.getpid(),
        host=socket.gethostname(),
        pid_namespace=_pid_namespace(),
        process_start=_process_start(os.getpid()) or "",
        since=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
    )


def _is_local(holder: Holder) -> bool:
    """Whether the holder's pid means something to this process."""
    same_host = holder.host == socket.gethostname()
    return same_host and holder.pid_namespace == _pid_namespace()


def _is_gone(holder: Holder) -> bool:
    """A process of this host that ended, or an earlier object of this process.

    Within one process the newest object wins; the earlier one finds `is_mine`
    false and writes no more.
    """
    if not _is_local(holder):
        return False
    if holder.pid == os.getpid():
        return True
    if not holder.process_start:
        return not _signalable(holder.pid)
    return _process_start(holder.pid) != holder.process_start


def _signalable(pid: int) -> bool:
    """Whether a process of this id exists, where there is no /proc to ask."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; tells reused pids apart.

    None for a process that has ended, a zombie included.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]
