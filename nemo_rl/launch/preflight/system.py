"""Checks of a node's limits: shared memory, limits of the user, disk, versions."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nemo_rl.launch.allocation import MEBIBYTE, OBJECT_STORE_LIMITS, OBJECT_STORE_SHARE
from nemo_rl.launch.preflight.checks import WARN, Check, Context, Finding, bad, ok

SHM = Path("/dev/shm")
OPEN_FILES = 65535
FEW_OPEN_FILES = 4096
TEMP_MIB = 1024
RUN_MIB = 1024
LIBRARIES = ("nemo_rl", "torch", "ray", "transformers", "megatron-core", "vllm")


def shared_memory(context: Context) -> Finding:
    """Whether /dev/shm has room for Ray's object store."""
    if not SHM.is_dir():
        return bad("no /dev/shm", "a tmpfs", "mount a tmpfs at /dev/shm")
    usage = shutil.disk_usage(SHM)
    free, total = usage.free // MEBIBYTE, usage.total // MEBIBYTE
    low = OBJECT_STORE_LIMITS[0] // MEBIBYTE
    wanted = max(low, int(OBJECT_STORE_SHARE * context.memory_mb))
    text = f"{free} MiB free of {total}"
    if free < low:
        cure = "remove what others left there (ls -la /dev/shm), or enlarge the tmpfs"
        return bad(text, f"at least {low} MiB", cure)
    if 0.8 * free < wanted and total < wanted:
        cure = "the object store is made smaller; enlarge /dev/shm (--shm-size)"
        return bad(text, f"{wanted} MiB wanted", cure, verdict=WARN)
    return ok(text, f"at least {low} MiB")


def open_files(context: Context) -> Finding:
    """Whether a process may open enough files; raises the soft limit itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    top = OPEN_FILES if hard == endless else min(hard, OPEN_FILES)
    raised = ""
    if soft != endless and soft < top:
        resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
        raised, soft = f", raised from {soft}", top
    text, limit = f"{'unlimited' if soft == endless else soft}{raised}", f"{OPEN_FILES}"
    if soft == endless or soft >= OPEN_FILES:
        return ok(text, limit)
    cure = "raise the hard limit: /etc/security/limits.conf, LimitNOFILE of slurmd"
    verdict = {} if soft < FEW_OPEN_FILES else {"verdict": WARN}
    return bad(text, limit, cure, **verdict)


def locked_memory(context: Context) -> Finding:
    """Whether memory can be pinned for a fabric with remote access (RDMA)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft // 1024} KiB"
    fabric = any(Path(path).exists() for path in ("/dev/infiniband", "/dev/cxi0"))
    if soft == resource.RLIM_INFINITY or not fabric:
        return ok(text, "unlimited" if fabric else "no fabric that needs it")
    cure = "set LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK"
    return bad(text, "unlimited", cure)


def temp_disk(context: Context) -> Finding:
    """Whether the node-local folder has room."""
    return _room(context.temp_root, TEMP_MIB, "NEMO_RL_TMPDIR", FEW_TEMP_MIB)


def run_disk(context: Context) -> Finding:
    """Whether the run folder's file system has room."""
    return _room(context.run_dir, RUN_MIB, "--run-dir", 64)


FEW_TEMP_MIB = 256


def _room(folder: Path, limit_mib: int, setting: str, few_mib: int) -> Finding:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free // MEBIBYTE
    state = os.statvfs(folder)
    text, limit = f"{free} MiB free below {folder}", f"at least {limit_mib} MiB"
    cure = f"free some, or choose another place ({setting})"
    if state.f_files and state.f_favail < 1000:
        return bad(f"{state.f_favail} inodes free below {folder}", "1000", cure)
    if free < few_mib:
        return bad(text, limit, cure)
    if free < limit_mib:
        return bad(text, limit, cure, verdict=WARN)
    return ok(text, limit)


def versions(context: Context) -> Finding:
    """Which Python and libraries this node has; the head compares them."""
    return ok(", ".join(f"{k} {v}" for k, v in installed().items()))


def installed() -> dict[str, str]:
    """Return name -> version of Python and of the libraries a run uses."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "-"
    return found


CHECKS = (
    Check("shm", "Ray's object store and workers share memory there", shared_memory),
    Check("nofile", "Ray opens thousands of sockets and files", open_files),
    Check("memlock", "a fabric adapter has to pin its buffers", locked_memory),
    Check("temp", "Ray's sockets, logs and spilled objects lie there", temp_disk),
    Check("disk", "checkpoints and logs lie there", run_disk, 15),
    Check("versions", "another library on one node breaks in the middle", versions),
)
