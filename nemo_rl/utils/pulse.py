"""Pulse: what this process does, in a file others can read when it answers no more.

A process that takes part calls `start`. From then on it counts what it gets done, and
two signals mean something to it: STACKS lets it write what every thread is doing, even
where no Python runs any more, and HANG raises `Hung` in its main thread. Knows nothing
of what the processes of a run do, and judges nothing: see `infra.hang`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from nemo_rl.utils import env
from nemo_rl.utils.exceptions import Hung

FOLDER = "NEMO_RL_PULSE_DIR"
RECORD_BYTES = 512
MOST_LETTERS = 100
EVERY_S = 0.5
"""Between two writes of mere counting."""

# Real-time signals: NCCL, Ray and schedulers have uses for the named ones. A process
# that has no handler for them would end, so they are sent to those alone that do.
_FIRST = getattr(signal, "SIGRTMIN", None)
STACKS: int | None = None if _FIRST is None else _FIRST + 6
HANG: int | None = None if _FIRST is None else _FIRST + 7


class Pulse:
    """The record of one process: a line of JSON of fixed length, written in place.

    Args:
        name: what this process is, such as "driver".
        folder: of this machine, made if it is not there.
    """

    def __init__(self, name: str, folder: Path) -> None:
        """Create the two files of this process."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.name = name
        self.limits: dict[str, Any] = {}
        self.hung = False
        self._pid = os.getpid()
        self._count = 0
        self._doing: list[tuple[int, str, float]] = []
        self._lock = threading.Lock()
        self._written = 0.0
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._file = os.open(folder / f"{self._pid}.json", flags, 0o600)
        self._stacks = os.open(folder / f"{self._pid}.stacks", flags, 0o600)
        if STACKS is not None:
            faulthandler.register(STACKS, file=self._stacks, all_threads=True)
        self.write()

    def beat(self, *, now: bool = False) -> None:
        """Count one thing done; the file follows within `EVERY_S`, or now."""
        if self._pid != os.getpid():
            return  # A forked child has its parent's record, which is not its own.
        self._count += 1
        if now or time.monotonic() - self._written >= EVERY_S:
            self.write()

    def begin(self, what: str) -> tuple[int, str, float]:
        """Note that a thread of this process begins something."""
        entry = (threading.get_ident(), what, time.time())
        self._doing.append(entry)
        self.beat(now=True)
        return entry

    def end(self, entry: tuple[int, str, float]) -> None:
        """Note its end."""
        if entry in self._doing:
            self._doing.remove(entry)
        self.beat(now=True)

    def write(self) -> None:
        """Write the record: one call, so that a reader sees no half of it."""
        with self._lock:
            doing = self._doing[-1] if self._doing else (0, "idle", time.time())
            record = {
                "name": self.name[:MOST_LETTERS],
                "pid": self._pid,
                "count": self._count,
                "doing": doing[1][:MOST_LETTERS],
                "since": round(doing[2], 1),
                **self.limits,
            }
            text = json.dumps(record).ljust(RECORD_BYTES - 1) + "\n"
            os.pwrite(self._file, text.encode(), 0)
            self._written = time.monotonic()

    def close(self) -> None:
        """Forget the signals and close the files."""
        if STACKS is not None:
            faulthandler.unregister(STACKS)
        os.close(self._file)
        os.close(self._stacks)


_own: Pulse | None = None


def start(name: str, *, answers_hang: bool = False, **limits: Any) -> None:
    """Begin to write this process's record, if it is told where; else do nothing.

    Where is NEMO_RL_PULSE_DIR: the agent of a node sets it, and the driver of a run
    without one. A second call only changes name and limits.

    Args:
        name: what this process is.
        answers_hang: raise `Hung` in the main thread when HANG arrives.
        **limits: further fields of the record, for whoever watches.
    """
    global _own
    folder = env.read(FOLDER)
    if not folder:
        return
    if _own is None:
        _own = Pulse(name, Path(folder))
    _own.name = name
    _own.limits |= limits
    _own.write()
    if (
        answers_hang
        and HANG is not None
        and threading.current_thread() is threading.main_thread()
    ):
        signal.signal(HANG, _on_hang)


def stop() -> None:
    """End the record; a later `start` begins a new one."""
    global _own
    own, _own = _own, None
    if own is not None:
        own.close()


def beat() -> None:
    """Count one thing done: a micro-batch, a decoding step, a file written."""
    if _own is not None:
        _own.beat()


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Name what this process does inside the block."""
    own = _own
    if own is None:
        yield
        return
    entry = own.begin(what)
    try:
        yield
    finally:
        own.end(entry)


def acknowledge() -> None:
    """Say that `Hung` has arrived: what is done now, such as saving, is let be."""
    if _own is not None:
        _own.limits["acknowledged"] = True
        _own.write()


def check() -> None:
    """Raise `Hung` if HANG has arrived where it could not be raised."""
    if _own is not None and _own.hung and "acknowledged" not in _own.limits:
        _raise_hung()


def _on_hang(number: int, frame: FrameType | None) -> None:
    if _own is None or "acknowledged" in _own.limits:
        return
    _own.hung = True
    # Ray's C code calls handlers, and an exception from there breaks it: whoever
    # called Ray looks by `check`.
    if frame is None or "/ray/" not in frame.f_code.co_filename:
        _raise_hung()


def _raise_hung() -> NoReturn:
    raise Hung(
        "nothing has moved in any process of the run for too long; the log above and "
        "the folder stacks/ of the attempt say what each of them was doing. "
        "cluster.hang_timeout_s sets how long that may be."
    )
