"""A run's log as it grows, over requeues and links of a chain, to its end."""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

POLL_S = 0.5


def appended(
    log: Path,
    ended: Callable[[], bool],
    *,
    start: int = 0,
    poll_s: float = POLL_S,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yield text as it is appended; a file that is not there yet is waited for.

    All attempts and all jobs of a chain append to the same file, so that a requeue is
    only a pause.

    Args:
        log: the file.
        ended: whether nothing more will be written; asked after each silence.
        start: byte to begin at.
        poll_s: seconds between two looks.
        sleep: waits; for tests.
    """
    position = start
    last = False
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        try:
            # Opened each time: a network file system then shows the newest state.
            with log.open("rb") as file:
                if file.seek(0, 2) < position:
                    position = 0
                file.seek(position)
                data = file.read()
        except FileNotFoundError:
            data = b""
        if data:
            position += len(data)
            yield decoder.decode(data)
        elif last:
            return
        else:
            # What was written between the last look and the end is read once more.
            last = ended()
        if not last:
            sleep(poll_s)


def follow(job: Any, out: TextIO | None = None) -> int:
    """Print `job.log` until the job has ended for good; return the run's exit code.

    What the log already holds of earlier jobs of a continued run is left out.

    Args:
        job: a `Job` as `submit` returns it.
        out: where to print; standard output when None.
    """
    out = out or sys.stdout
    path, start = job.paths.stdout, job.log_start
    for text in appended(path, job.done, start=start, poll_s=POLL_S):
        out.write(text)
        out.flush()
    return job.exit_code()
