"""What a command shows: a bar with rate and time left, and the memory it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_rl.utils.files import human_size


@contextmanager
def progress(total: int) -> Iterator[Callable[..., None]]:
    """A bar with rate and time left on a terminal, one line at the end elsewhere.

    What it gives is called with counts of bytes; with ``earlier`` for those that an
    earlier process has done, which say nothing about the rate.
    """
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

        def advance(count: int, *, earlier: bool = False) -> None:
            nonlocal done
            if earlier:
                bar.reset(task, completed=count)
            else:
                done += count
                bar.advance(task, count)

        yield advance
    seconds = max(time.monotonic() - started, 1e-9)
    print(f"{done / 1e6:,.0f} MB in {seconds:.1f} s, {done / 1e6 / seconds:,.0f} MB/s")


def resident() -> int:
    """Bytes of memory that this process has now, mapped files included."""
    return _status("VmRSS")


def peak() -> int:
    """The most bytes of memory that this process had, mapped files included."""
    return _status("VmHWM")


def memory(bound: int | None = None) -> str:
    """The most memory that this process had, and the bound it keeps."""
    text = f"peak memory {human_size(peak())}"
    helpers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if helpers:
        text += f", of its largest helper {human_size(helpers)}"
    return text if bound is None else f"{text} (bound {human_size(bound)})"


def _status(field: str) -> int:
    """A field of Linux's account of this process, in bytes.

    Not getrusage: its peak begins with that of the process that started this one.
    """
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024
