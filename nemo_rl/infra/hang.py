"""Whether a run still moves, and if not, who holds the others up.

Judges what `infra.stacks` has read, of one machine or of all of them; reads no files
and ends nothing.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_rl.infra.stacks import Process

LIMIT = "hang_timeout_s"
"""Field of the driver's record."""
WARN_SHARE = 1 / 3
"""Of the time that ends a run: then its user is told."""
SETUP_S = 1800.0
"""Before its first step a run may take this long: it reads a model, which tells of
nothing between its beginning and its end."""
MOST_ROWS = 16
_RANK = re.compile(r" rank \d+$")


class Stillness:
    """For how long a value has stayed the same.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start to count."""
        self.limit_s: float | None = None
        """Seconds after which a run counts as hung; None for never."""
        self._clock = clock
        self._value: Hashable = None
        self._since = clock()
        self._warned = False

    def look(self, value: Hashable, limit_s: float | None) -> str:
        """Take in the newest value; return "", "warn" (once per halt) or "hung"."""
        self.limit_s = limit_s
        if value != self._value:
            self._value, self._since, self._warned = value, self._clock(), False
        if self.limit_s is None:
            return ""
        if self.seconds >= self.limit_s:
            return "hung"
        if self.seconds >= WARN_SHARE * self.limit_s and not self._warned:
            self._warned = True
            return "warn"
        return ""

    @property
    def seconds(self) -> float:
        """Seconds since the value changed."""
        return self._clock() - self._since


def limit_of(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how long nothing may move, by the driver's record among those of a node.

    None where no driver runs, or where its recipe sets no limit.
    """
    for record in records:
        if (limit := record.get(LIMIT)) is not None:
            return limit if record["count"] else max(limit, SETUP_S)
    return None


@dataclass(frozen=True)
class Verdict:
    """Who holds up a run, as far as it shows."""

    names: tuple[str, ...]
    """Processes with their hosts; empty where nobody stands out."""
    text: str
    """One sentence."""


def judge(processes: Sequence[Process]) -> Verdict:
    """Name the process that the others wait for.

    In this order: one that the kernel does not let run or that did not answer; one
    that works while others wait; one of several alike that is elsewhere than most, or
    that has done less than the others.
    """
    if not processes:
        return Verdict((), "No process of the run could be asked.")
    mute = [p for p in processes if p.state or not p.stack]
    if mute:
        return _named(mute, lambda p: p.state or "does not answer")
    busy = [p for p in processes if not p.waits]
    if busy and len(busy) < len(processes) and len(busy) <= max(1, len(processes) // 2):
        return _named(busy, lambda p: f"is in {p.doing}, at {p.where}")
    for alike in _groups(processes):
        odd = _minority(alike, lambda p: (p.doing, p.where))
        if odd:
            return _named(odd, lambda p: f"is in {p.doing}, at {p.where}")
        odd = _minority(alike, lambda p: p.count)
        if odd and all(p.count < _most(alike) for p in odd):
            return _named(odd, lambda p: f"has done {p.count} parts, others more")
    return Verdict((), "No process stands out: each one waits for another.")


def report(processes: Sequence[Process], verdict: Verdict, still: Stillness) -> str:
    """Word what is known, for the log.

    Args:
        processes: all of the run.
        verdict: of `judge`.
        still: for how long nothing has moved, and how long that may be.
    """
    limit = f" (limit {still.limit_s:.0f} s)" if still.limit_s else ""
    head = f"nothing has moved for {still.seconds:.0f} s{limit}. "
    named = [p for p in processes if _label(p) in verdict.names]
    shown = [*named, *(p for p in processes if p not in named)][:MOST_ROWS]
    width = max((len(_label(p)) for p in shown), default=0)
    rows = [
        f"    {_label(p):<{width}}  {p.state or p.doing} for {p.seconds:.0f} s: "
        f"{p.where}"
        for p in shown
    ]
    left = len(processes) - len(shown)
    if left > 0:
        rows.append(f"    and {left} more")
    return "\n".join([head + verdict.text, *rows])


def _named(odd: Sequence[Process], what: Callable[[Process], str]) -> Verdict:
    names = tuple(_label(p) for p in odd)
    first, more = odd[0], len(odd) - 1
    others = f"; so do {more} more" if more else ""
    return Verdict(
        names,
        f"It waits for {_label(first)} (process {first.pid}), which "
        f"{what(first)}{others}.",
    )


def _label(process: Process) -> str:
    return f"{process.name} on {process.host}"


def _groups(processes: Sequence[Process]) -> list[list[Process]]:
    """Processes that do the same work, at least three of them."""
    found: dict[str, list[Process]] = {}
    for process in processes:
        found.setdefault(_RANK.sub("", process.name), []).append(process)
    return [alike for alike in found.values() if len(alike) > 2]


def _most(processes: Sequence[Process]) -> int:
    return max(p.count for p in processes)


def _minority(
    alike: Sequence[Process], key: Callable[[Process], Hashable]
) -> list[Process]:
    """Those that differ from more than half of the others in a property."""
    value, number = Counter(key(p) for p in alike).most_common(1)[0]
    if number == len(alike) or 2 * number <= len(alike):
        return []
    return [p for p in alike if key(p) != value]
