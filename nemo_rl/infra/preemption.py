"""PreemptionFlag: "save and stop at the next step boundary", from a signal or a file.

It only raises the flag; saving and exit codes belong to the trainer and the driver.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

FILE_NAME = "PREEMPT"

# USR2, because NCCL may use USR1.
SIGNALS = (signal.SIGUSR2, signal.SIGTERM)

_STARTED = time.time()


class PreemptionFlag:
    """Becomes true once somebody wants this run to save and stop.

    Two sources: SIGUSR2 or SIGTERM, and a file `PREEMPT` in the run folder (the job
    script touches it where a signal does not reach this process).

    Args:
        run_dir: the run's folder; None for no file.

    Example::

        flag = PreemptionFlag(run_dir)
        flag.install()             # after Ray is connected: it takes SIGTERM too
        ...
        if flag.requested:         # at a step boundary
            save()
    """

    def __init__(self, run_dir: Path | str | None = None) -> None:
        """Prepare; nothing is watched before `install`."""
        self._file = Path(run_dir) / FILE_NAME if run_dir else None
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._reason = ""

    def install(self) -> PreemptionFlag:
        """Begin to watch. A file left by an earlier start of the job is removed.

        Outside the main thread signals cannot be caught; the file still works.
        """
        self._remove_stale_file()
        if threading.current_thread() is not threading.main_thread():
            log.info("signals are not watched outside the main thread")
            return self
        for number in SIGNALS:
            if number not in self._previous:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def uninstall(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            # None: the earlier handler was not set from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether to save and stop; stays true once it is."""
        if not self._reason:
            self._reason = self._look()
        return bool(self._reason)

    @property
    def reason(self) -> str:
        """What asked for it, for the log; "" while nothing has."""
        return self._reason if self.requested else ""

    def _look(self) -> str:
        if self._signal is not None:
            return f"signal {signal.Signals(self._signal).name}"
        if self._file is not None and self._file.exists():
            return f"file {self._file}"
        return ""

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Only set a field: anything more could meet a lock that is held."""
        if self._signal == signal.SIGTERM and number == signal.SIGTERM:
            # Whoever terminates twice does not want to wait for a checkpoint.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = number

    def _remove_stale_file(self) -> None:
        """A requeued job has the same folder, and the file that stopped it before."""
        if self._file is None:
            return
        try:
            if self._file.stat().st_mtime < _STARTED:
                self._file.unlink()
                log.info("removed %s of an earlier start", self._file)
        except FileNotFoundError:
            return
