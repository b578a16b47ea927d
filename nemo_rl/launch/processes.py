"""Children of the node agent: start them, watch them, end all of them fast.

Knows nothing about what they do.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
TAIL_LINES = 10
TAIL_WIDTH = 300
_NOISE = re.compile(
    r"\[state-dump\]| I \d+ \d+\] \(raylet\)|^\s*-? ?(num )?(bytes|objects) |"
    r"objects of total size|(BEGIN|END) \w+\.(out|err) tail"
)


class Child:
    """One child process with its log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Path | None = None,
        *,
        blocked: Collection[signal.Signals] = (),
    ) -> None:
        """Start it in a session of its own, so that signals for us spare it.

        It ignores SIGUSR2 until it sets a handler: `scancel --signal=USR2` reaches
        every process of a step, and would end those that do not know it.

        Args:
            name: how messages call it.
            command: program and arguments.
            env: its whole environment.
            log: file for its output; this process's output when None.
            blocked: signals that neither it nor what it starts will hear.
        """
        self.name = name
        self.log = log
        sys.stdout.flush()
        output = log.open("ab") if log else None
        ours = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # A child inherits this.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # And this.
        try:
            self._process = subprocess.Popen(
                list(command),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGUSR2, ours)
        if output:
            output.close()

    @property
    def returncode(self) -> int | None:
        """Exit status, as the shell counts: 128 + n when signal n ended it."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send a signal to the child alone; nothing happens if it is gone."""
        if self.returncode is None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Force it and what it started in its session to end."""
        if self.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def last_lines(self, count: int) -> list[str]:
        """Return the end of its log, without what Ray's raylet dumps."""
        if self.log is None or not self.log.exists():
            return []
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [
            line.strip()[:TAIL_WIDTH]
            for line in text.splitlines()
            if line.strip() and not _NOISE.search(line)
        ]
        return lines[-count:]

    def tail(self) -> str:
        """Return the end of its log, indented."""
        return "".join(f"\n    {line}" for line in self.last_lines(TAIL_LINES))


def adopt_orphans() -> None:
    """Let every process started below stay below, even when its parent ends.

    Ray's daemons and workers detach themselves; so `end_all` still finds them.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Return the ids of all processes below a process, nearest first."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (parent := _parent(int(entry))) is not None:
            children.setdefault(parent, []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found.extend(below)
        queue.extend(below)
    return found


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None  # It ended while we looked.
    # The command's name is in brackets and may hold blanks and brackets itself.
    state, parent = stat.rpartition(")")[2].split()[:2]
    return None if state == "Z" else int(parent)


def end_all(grace_s: float = 3.0) -> None:
    """End every process below this one: ask, wait a moment, then force.

    Args:
        grace_s: how long to wait; 0 forces at once.
    """
    deadline = time.monotonic() + grace_s
    if grace_s:
        _signal_all(signal.SIGTERM)
    while descendants(os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.05)
    # New children may appear while the tree is read, so look until it is empty.
    for _ in range(40):
        if not _signal_all(signal.SIGKILL):
            return
        time.sleep(0.05)


def _signal_all(number: int) -> list[int]:
    pids = descendants(os.getpid())
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return pids
