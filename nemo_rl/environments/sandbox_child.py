"""The program inside the sandbox: locks itself in, then runs the source it is given.

Standard library only, and it imports nothing of this package: ``sandbox.py`` starts it
as a file, in a folder of its own. Its argument is the name of a file with settings,
which it removes. What it has to say goes, line by line, to the file descriptor named
there:

- ``child 123`` the process that runs the program
- ``refused: ...`` the kernel does not allow a part of the isolation
- ``ready`` everything is locked; the program begins
- the secret, once the program has come to its end
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import traceback
from typing import Any

NEW_NAMESPACES = {"mount": 0x20000, "user": 0x10000000, "pid": 0x20000000}
NEW_NETWORK = 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
SYS_MOUNT_SETATTR, AT_RECURSIVE, AT_FDCWD = 442, 0x8000, -100
READ_ONLY = 1
PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 8, 38
CAP_DAC_READ_SEARCH = 1 << 2
FIRST_UID, UIDS = 40000, 20000

libc = ctypes.CDLL(None, use_errno=True)


class MountAttributes(ctypes.Structure):
    """``struct mount_attr`` of mount_setattr(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "prop", "userns")]


def call(what: str, result: int) -> None:
    """Raise OSError where a C function says that it failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def report(settings: dict[str, Any], text: str) -> None:
    """Tell whoever started us."""
    os.write(settings["report"], f"{text}\n".encode())


def new_namespaces(network: bool) -> None:
    """Leave the file system, processes and, unless allowed, network of the others."""
    flags = NEW_NAMESPACES["mount"] | NEW_NAMESPACES["pid"]
    flags |= 0 if network else NEW_NETWORK
    if os.geteuid() != 0:
        flags |= NEW_NAMESPACES["user"]
    call("unshare", libc.unshare(flags))


def read_only_but_here() -> None:
    """Make every file system read-only, except for the current folder.

    /proc is covered: it would show the environment of the user's other processes.
    """
    here = os.getcwd().encode()
    call("mount", libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    call("mount", libc.mount(b"none", b"/proc", b"tmpfs", 0, b"size=4k"))
    call("mount", libc.mount(here, here, None, MS_BIND, None))
    for path, flags, attributes in (
        (b"/", AT_RECURSIVE, MountAttributes(set=READ_ONLY)),
        (here, 0, MountAttributes(clear=READ_ONLY)),
    ):
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        pointer = ctypes.byref(attributes)
        done = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, flags, pointer, size)
        call("mount_setattr", done)
    # The old current folder is the one below the new mount.
    os.chdir(here)


def give_up_rights(uid: int) -> None:
    """Become a user of no rights; as root keep the right to read, for imports.

    Args:
        uid: The user to become, where this is root.
    """
    kept = 0
    if os.geteuid() == 0:
        os.chown(".", uid, uid)
        call("prctl", libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        kept = CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    for rights in (kept, 0):
        # Effective, permitted, inheritable; then the upper half of each.
        data = (ctypes.c_uint32 * 6)(rights, rights, 0, 0, 0, 0)
        if libc.capset(header, data) == 0:
            break
    call("prctl", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def set_limits(settings: dict[str, Any], processes: bool) -> None:
    """Set the hard limits, from which there is no way back."""
    limits = {
        resource.RLIMIT_CPU: settings["cpu_s"],
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if processes:
        limits[resource.RLIMIT_NPROC] = settings["processes"]
    for which, limit in limits.items():
        _, hard = resource.getrlimit(which)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))


def lock_in(settings: dict[str, Any]) -> None:
    """Give up everything that the program must not have.

    Where namespaces are refused and the network is allowed, the program runs without
    them. Only a process of a user of its own can then be held to a number of
    processes: elsewhere the limit would count all processes of the user.
    """
    alone, root = True, os.geteuid() == 0
    uid = FIRST_UID + os.getpid() % UIDS
    try:
        new_namespaces(settings["network"])
    except OSError:
        if not settings["network"]:
            raise
        alone = False
    if alone:
        # Only children are in the new process namespace. This process stays outside
        # and ends with them.
        child = os.fork()
        if child:
            report(settings, f"child {child}")
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        read_only_but_here()
    give_up_rights(uid)
    # As root in a container there may be no right to read left: rather say so than
    # let every import of the program fail.
    os.listdir(os.path.dirname(os.__file__))
    set_limits(settings, processes=alone or root)


def run(source: str) -> None:
    """Run the program; return if it comes to its end."""
    try:
        exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - it is the program's own output
        # Of the trace only the program's own lines.
        trace = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, trace)
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()


def main() -> None:
    """Read the settings, lock in, run."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    os.remove(sys.argv[1])
    sys.argv = ["program"]
    try:
        lock_in(settings)
    except OSError as error:
        report(settings, f"refused: {error}")
        os._exit(1)
    report(settings, "ready")
    os.set_inheritable(settings["report"], False)
    run(settings.pop("source"))
    report(settings, settings["secret"])


if __name__ == "__main__":
    main()
