"""Checks of folders: a file written, synced and renamed; what earlier jobs left.

A folder of ours is one named `nemo_rl-<job>-<node>`, as `launch/node.py` makes it. It
is removed only if this node marked it and no process of its job is left here: the
folder may lie where other nodes have theirs.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from nemo_rl.launch.preflight.checks import WARN, Check, Context, Finding, bad, ok
from nemo_rl.utils.exceptions import LaunchError

SYNC_S = 5.0
MARK = "node"
"""File of such a folder: the name of the host that made it."""
_OURS = re.compile(r"nemo_rl-(\d+)-\d+")
_JOB = re.compile(rb"(?:^|\0)SLURM_JOB_ID=(\d+)(?:\0|$)")


def run_folder(context: Context) -> Finding:
    """Whether a checkpoint could appear in the run folder, by one rename."""
    return _write(context.run_dir, "--run-dir or NEMO_RL_RUN_DIR")


def checkpoint_folder(context: Context) -> Finding:
    """Whether the recipe's checkpoint folder, if it is absolute, can be written."""
    folder = context.extra.get("checkpoint_dir")
    if folder is None or not Path(folder).is_absolute():
        return ok("in the run folder")
    return _write(Path(folder), "checkpointing.checkpoint_dir")


def _write(folder: Path, setting: str) -> Finding:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    limit = "write, fsync and rename"
    cure = f"check owner, mode and quota, or change {setting}"
    name = f".preflight-{secrets.token_hex(6)}"
    began = time.monotonic()
    partial, final = existing / f"{name}.tmp", existing / name
    try:
        with partial.open("xb") as file:
            file.write(secrets.token_bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(final)
        handle = os.open(existing, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        return bad(f"{existing}: {error.strerror}", limit, cure)
    finally:
        for path in (partial, final):
            with contextlib.suppress(OSError):  # What went wrong is told already.
                path.unlink()
    seconds = time.monotonic() - began
    text = f"{existing}: {seconds:.2f} s"
    if seconds > SYNC_S:
        slow = "the file system is overloaded: checkpoints will be slow"
        return bad(text, f"{SYNC_S:.0f} s", slow, verdict=WARN)
    return ok(text, limit)


def claim(folder: Path) -> None:
    """Make a job's node-local folder anew, private to the user, and mark it.

    What lies there is of an attempt of this job that was killed: its processes, if
    any is left, are ended, and its files removed.

    Raises:
        LaunchError: it belongs to somebody else.
    """
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise LaunchError(
            f"{folder} on {socket.gethostname()} is not ours: somebody else made it. "
            "Set NEMO_RL_TMPDIR to a folder that others cannot write to."
        )
    for pid in users(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700, parents=True)
    mark(folder)


def mark(folder: Path) -> None:
    """Say in a folder of ours that this node made it."""
    (folder / MARK).write_text(socket.gethostname(), encoding="utf-8")


def _marked(folder: Path) -> str | None:
    try:
        return (folder / MARK).read_text(encoding="utf-8")
    except OSError:
        return None


def leftovers(context: Context) -> Finding:
    """Remove our folders of jobs that are gone from the node-local folder."""
    removed, kept = [], []
    jobs = living_jobs() | {context.job_id}
    for folder in sorted(context.temp_root.glob("nemo_rl-*-*")):
        match = _OURS.fullmatch(folder.name)
        if match is None or int(match[1]) in jobs or folder.is_symlink():
            continue
        owner = _marked(folder)
        if owner is None:
            kept.append(folder.name)
        if owner != socket.gethostname() or folder.stat().st_uid != os.getuid():
            continue
        if pids := users(folder):
            kept.append(f"{folder.name} (used by process {pids[0]})")
            continue
        shutil.rmtree(folder, ignore_errors=True)
        (kept if folder.exists() else removed).append(folder.name)
    if kept:
        cure = f"whose are they? If nobody's: rm -r below {context.temp_root}"
        return bad(f"left: {', '.join(kept[:5])}", "none", cure, verdict=WARN)
    if removed:
        return ok(f"removed of earlier jobs: {', '.join(removed[:5])}", "none")
    return ok("none", "none")


def users(folder: Path) -> list[int]:
    """Return our processes on this node that belong to the Ray of a folder.

    Ray's daemons outlive an agent that was killed, and do not know SLURM's variables.
    """
    wanted = b"RAY_TMPDIR=" + os.fsencode(folder)
    return [
        pid
        for pid, variables in _environments()
        if wanted in variables.split(b"\0") and pid != os.getpid()
    ]


def _environments() -> Iterator[tuple[int, bytes]]:
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            yield int(entry), Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue  # Gone, or not ours to look at.


def living_jobs() -> set[int]:
    """Return the SLURM jobs that have a process of ours on this node."""
    found = (_JOB.search(variables) for _, variables in _environments())
    return {int(match[1]) for match in found if match}


CHECKS = (
    Check("writable", "logs and checkpoints appear by a rename", run_folder, 20),
    Check(
        "checkpoints",
        "a checkpoint that cannot be written is lost",
        checkpoint_folder,
        20,
    ),
    Check("leftovers", "files of dead jobs fill the disk", leftovers, 20, late=WARN),
)
