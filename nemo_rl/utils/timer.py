"""Named phase timers that become metrics; wall time of one process, no devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Timer:
    """Adds up the seconds spent in named phases.

    Example:
        >>> timer = Timer()
        >>> with timer.time("generation"):
        ...     pass
        >>> sorted(timer.metrics())
        ['timing/generation_s']
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with no phases; `clock` returns seconds."""
        self._clock = clock
        self._seconds: dict[str, float] = {}

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the time of the `with` block to a phase, also when the block raises."""
        start = self._clock()
        try:
            yield
        finally:
            elapsed = self._clock() - start
            self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed

    def seconds(self, phase: str) -> float:
        """Return the seconds of a phase since the last reset, 0 if it never ran."""
        return self._seconds.get(phase, 0.0)

    def metrics(self, *, reset: bool = False) -> dict[str, float]:
        """Return {"timing/<phase>_s": seconds}; with `reset`, start again from 0."""
        values = {f"timing/{name}_s": value for name, value in self._seconds.items()}
        if reset:
            self.reset()
        return values

    def reset(self) -> None:
        """Forget every phase."""
        self._seconds.clear()
