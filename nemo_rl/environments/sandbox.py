"""Sandbox: run a Python program that nobody has read, within limits.

Its own process, folder and limits of processor time, memory, file size and processes;
with namespaces of the kernel also no network, a read-only file system and no other
process in sight. It holds back accidents and the usual mischief of a policy; it is no
prison for an attacker, and what the user may read the program may read.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from nemo_rl.utils.exceptions import ConfigurationError, ResourceError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_SHOWN = 1 << 16
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use at most."""

    timeout_s: float = 10.0
    """Seconds of wall-clock."""
    cpu_s: int = 5
    """Seconds of processor time of one process."""
    memory_mb: int = 1024
    """Address space of one process, in MiB."""
    max_file_mb: int = 16
    """Largest file, standard output too, in MiB."""
    max_processes: int = 16
    """Processes and threads."""
    network: bool = False
    """Leave the network; also run where the kernel refuses namespaces."""


class Result(NamedTuple):
    """How a program ended."""

    completed: bool
    """It came to the end of its source; not if it exited before."""
    timed_out: bool
    """It was ended after ``timeout_s``."""
    exit_code: int
    """Of its process; negative for a signal."""
    stdout: str
    """The first 64 KiB of its output."""
    stderr: str
    """The first 64 KiB of its errors."""


def run_python(source: str, *, stdin: str = "", limits: Limits) -> Result:
    """Run a program to its end or to its limits; all its processes end with it.

    Args:
        source: Python. It runs by this interpreter, with its installed packages.
        stdin: What the program can read.
        limits: What it may use.

    Raises:
        ConfigurationError: The kernel refuses the isolation.
        ResourceError: No process can be started.
    """
    secret = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(
                prefix="nemo_rl-sandbox-", ignore_cleanup_errors=True
            )
        )
        streams: list[IO[bytes]] = [
            stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)
        ]
        streams[0].write(stdin.encode())
        streams[0].seek(0)
        heard, told = os.pipe()
        stack.callback(os.close, heard)
        try:
            _write_settings(folder, source, secret, report=told, limits=limits)
            process = _start(folder, streams, told)
        finally:
            os.close(told)
        os.set_blocking(heard, False)
        timed_out, lines = _wait(process, heard, limits.timeout_s)
        _check(lines, limits, streams[2])
        return Result(
            completed=secret in lines and not timed_out,
            timed_out=timed_out,
            exit_code=process.returncode,
            stdout=_read(streams[1]),
            stderr=_read(streams[2]),
        )


def _write_settings(
    folder: str, source: str, secret: str, *, report: int, limits: Limits
) -> None:
    settings = {
        "source": source,
        "secret": secret,
        "report": report,
        "network": limits.network,
        "cpu_s": limits.cpu_s,
        "memory_bytes": limits.memory_mb * _MIB,
        "file_bytes": limits.max_file_mb * _MIB,
        "processes": limits.max_processes,
    }
    Path(folder, "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def _start(folder: str, streams: list[IO[bytes]], report: int) -> subprocess.Popen:
    try:
        return subprocess.Popen(
            [sys.executable, "-I", str(_CHILD), "settings.json"],
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            cwd=folder,
            env={"HOME": folder, "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
            pass_fds=[report],
            start_new_session=True,
        )
    except OSError as error:
        raise ResourceError(f"The sandbox cannot start a process: {error}") from error


def _wait(
    process: subprocess.Popen, heard: int, timeout_s: float
) -> tuple[bool, list[str]]:
    """Wait for the end, or make one; whether it had to be made, and what was told."""
    timed_out, lines = False, []
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
        lines = _heard(heard)
        # The first process of a namespace takes all others with it, also those that
        # left the process group. Its number is its own while its parent lives.
        for line in lines:
            if line.startswith("child "):
                _kill(os.kill, int(line.split()[1]))
    _kill(os.killpg, process.pid)
    process.wait()
    return timed_out, lines + _heard(heard)


def _kill(how, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        how(number, signal.SIGKILL)


def _heard(pipe: int) -> list[str]:
    """Return the lines that the child has reported so far."""
    try:
        return os.read(pipe, _SHOWN).decode(errors="replace").splitlines()
    except BlockingIOError:
        return []


def _check(lines: list[str], limits: Limits, errors: IO[bytes]) -> None:
    refused = [line for line in lines if line.startswith("refused: ")]
    if refused and not limits.network:
        raise ConfigurationError(
            f"The kernel refuses to isolate generated code ({refused[0][9:]}): user, "
            "network, mount and process namespaces are needed, which many containers "
            "forbid. Allow them, or set env.code.network to 'allow' to run the code "
            "without: it can then reach the network and write the user's files."
        )
    if refused:
        raise ResourceError(f"The sandbox cannot be set up: {refused[0][9:]}")
    if "ready" not in lines and not any(line.startswith("child") for line in lines):
        raise ResourceError(f"The sandbox did not start: {_read(errors)[-500:]}")


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(_SHOWN).decode(errors="replace")
