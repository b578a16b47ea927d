"""What a command shows: a bar with rate and time left, and the memory it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal, one line at the end elsewhere."""
    from rich import progress as rich

    started = time.monotonic()
    columns: list[Any] = [
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    ]
    done = 0
    with rich.Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=total)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.advance(task, count)

        yield advance
    seconds = max(time.monotonic() - started, 1e-9)
    print(f"{done / 1e6:,.0f} MB in {seconds:.1f} s, {done / 1e6 / seconds:,.0f} MB/s")


def memory() -> str:
    """The most memory that this process had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"peak memory {peak / 1024:,.0f} MiB, files that are mapped included"
