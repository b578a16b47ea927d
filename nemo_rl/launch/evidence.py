"""What a node still knows when a process on it has died: kernel log, OOM counts, logs.

Everything is best effort and bounded: what may not be read is left out. Knows nothing
of who died.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from nemo_rl.utils.secrets import variable_is_secret

FILE_BYTES = 2**20
"""Kept of the end of a log file."""
NODE_BYTES = 64 * 2**20
"""Kept of one node's logs."""
JOB_BYTES = 8 * 2**30
"""Kept of all nodes' logs: at 4,096 nodes 2 MiB of each."""
COPY_S = 5.0
"""Copying ends after this, whatever is left."""
KERNEL_LINES = 40
_KERNEL = re.compile(
    r"out of memory|oom[-_]kill|NVRM|Xid|segfault|general protection|hardware error|"
    r"I/O error|nvlink|mce:|EDAC|EXT4-fs error|XFS .*error|nfs: server",
    re.IGNORECASE,
)
_HEADER = re.compile(r"^\d+,\d+,(\d+),[^;]*;(.*)")
_SHORTEST_SECRET = 8
_FIRST = ("worker-*", "python-core-worker-*", "raylet*", "gcs_server*", "*.err", "*")
"""Which logs are kept first when there is not room for all."""


class Witness:
    """What has happened on this node since it was made.

    Args:
        proc: the folder of process information.
        kernel: the kernel's log as a device.
        cgroups: where control groups are mounted.
    """

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        kernel: Path = Path("/dev/kmsg"),
        cgroups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        """Remember now, and how often the OOM killer has come so far."""
        self._kernel, self._proc, self._cgroups = kernel, proc, cgroups
        self._since_us = time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
        self._kills = self._oom_kills()

    def lines(self) -> list[str]:
        """Return what kernel and control group say of trouble since then."""
        found = self._kernel_lines()
        kills, before = self._oom_kills(), self._kills
        if kills is not None and before is not None and kills > before:
            found.append(f"memory control group: oom_kill {kills - before}")
        return found

    def _kernel_lines(self) -> list[str]:
        found: list[str] = []
        try:
            device = os.open(self._kernel, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return found
        try:
            while record := _next_record(device):
                for entry in record.splitlines():
                    match = _HEADER.match(entry)
                    if (
                        match
                        and int(match[1]) >= self._since_us
                        and _KERNEL.search(match[2])
                    ):
                        found.append(f"kernel: {match[2]}")
        finally:
            os.close(device)
        return found[-KERNEL_LINES:]

    def _oom_kills(self) -> int | None:
        """Return the counter of this process's control group; None: it has none."""
        try:
            groups = (self._proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            return None
        for line in groups:
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                places = [self._cgroups / path.lstrip("/") / "memory.events"]
            elif controllers == "memory":
                root = self._cgroups / "memory"
                names = (root / path.lstrip("/"), root)
                places = [place / "memory.oom_control" for place in names]
            else:
                continue
            for place in places:
                if (count := _count(place)) is not None:
                    return count
        return None


def _next_record(device: int) -> str:
    """Return the next part of the kernel's log; "" at its end."""
    while True:
        try:
            return os.read(device, 8192).decode("utf-8", errors="replace")
        except BlockingIOError:
            return ""
        except BrokenPipeError:
            continue  # Overwritten while we read: go on with the oldest there is.
        except OSError:
            return ""


def _count(path: Path) -> int | None:
    try:
        text = path.read_text()
    except OSError:
        return None
    match = re.search(r"^oom_kill (\d+)", text, re.MULTILINE)
    return int(match[1]) if match else None


def worker_log(folder: Path, pid: int) -> str:
    """Return the end of what a worker of Ray printed; "" if its logs are not here.

    Args:
        folder: Ray's log folder of this node.
        pid: the worker's process id, by which Ray names the files.
    """
    found = ""
    for ending in ("out", "err"):
        for path in folder.glob(f"worker-*-{pid}.{ending}"):
            with suppress(OSError):
                found += _end(path, FILE_BYTES // 16, []).decode(errors="replace")
    # Lines with a leading colon are Ray's own bookkeeping of the process.
    return "".join(line for line in found.splitlines(True) if line[:1] != ":")


def secret_values(environ: Mapping[str, str], *files: Path) -> list[bytes]:
    """Return values that no log may show, the longest first.

    Args:
        environ: variables whose names speak of secrets are taken, but for paths.
        files: files whose content is a secret; those that are gone are left out.
    """
    values = {
        value.encode()
        for name, value in environ.items()
        if variable_is_secret(name) and not value.startswith("/")
    }
    for path in files:
        try:
            values.add(path.read_bytes().strip())
        except OSError:
            continue
    found = [value for value in values if len(value) >= _SHORTEST_SECRET]
    return sorted(found, key=len, reverse=True)


def hidden(text: bytes, secrets: Iterable[bytes]) -> bytes:
    """Return the text with each secret replaced by ***."""
    for secret in secrets:
        text = text.replace(secret, b"***")
    return text


def node_share(num_nodes: int) -> int:
    """Return how many bytes of logs one of a job's nodes may keep."""
    return max(FILE_BYTES, min(NODE_BYTES, JOB_BYTES // max(1, num_nodes)))


def keep_logs(
    source: Path,
    target: Path,
    *,
    room: int = NODE_BYTES,
    secrets: Iterable[bytes] = (),
    limit_s: float = COPY_S,
) -> int:
    """Copy the ends of a folder's log files; return how many bytes were kept.

    Files that cannot be read or written are left out: a full disk must not hide why
    the job failed.

    Args:
        source: Ray's log folder of this node.
        target: made if there is anything to keep; only its owner can read it.
        room: most bytes in all; 1 MiB of a file.
        secrets: what is replaced by ***.
        limit_s: seconds after which no further file is begun.
    """
    deadline = time.monotonic() + limit_s
    secrets = list(secrets)
    kept = 0
    for path in _in_order(source):
        if kept >= room or time.monotonic() > deadline:
            break
        copy = target / path.relative_to(source)
        try:
            text = _end(path, min(FILE_BYTES, room - kept), secrets)
            if not text:
                continue
            target.mkdir(mode=0o700, exist_ok=True)
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            copy.write_bytes(text)
        except OSError:
            continue
        kept += len(text)
    return kept


def _end(path: Path, count: int, secrets: list[bytes]) -> bytes:
    """Return the last bytes; a secret that begins before them is hidden, too."""
    before = max(map(len, secrets), default=0)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - count - before))
        return hidden(file.read(count + before), secrets)[-count:]


def _in_order(source: Path) -> list[Path]:
    found: dict[Path, None] = {}
    for pattern in _FIRST:
        paths = [p for p in source.rglob(pattern) if p.is_file() and not p.is_symlink()]
        found |= dict.fromkeys(sorted(paths, key=_changed, reverse=True))
    return list(found)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
