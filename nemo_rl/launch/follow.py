"""Print a run's log as it grows, over requeues and links of a chain, to its end."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

POLL_S = 0.5


def follow(job: Any, out: TextIO | None = None) -> int:
    """Print `job.log` until the job has ended for good; return the run's exit code.

    What the log already holds of earlier jobs of a continued run is left out.

    Args:
        job: a `Job` as `submit` returns it.
        out: where to print; standard output when None.
    """
    out = out or sys.stdout
    path = job.paths.stdout
    position = job.log_start
    while True:
        ended = job.done()  # Asked first: the log is whole once the job has ended.
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                text = file.read()
            position += len(text)
            if text:
                out.write(text.decode("utf-8", errors="replace"))
                out.flush()
        if ended:
            return job.exit_code()
        time.sleep(POLL_S)
