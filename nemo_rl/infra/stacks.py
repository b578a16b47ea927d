"""What the processes of this machine are doing: their records and their stacks.

Reads what `utils.pulse` writes; judges nothing.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_rl.utils import pulse

ANSWER_S = 2.0
"""For a process to write its stacks: a signal handler in C does it at once."""
STATES = {"T": "stopped", "t": "traced", "D": "blocked in the kernel", "Z": "ended"}
_FRAME = re.compile(r'  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)')
_WAITS = re.compile(
    r"torch/distributed/|ray/_private/(worker|auto_init_hook)\.py|/ray/_raylet|"
    r"(^|/)(threading|selectors|queue|subprocess|socket|ssl|zmq[^ ]*)\.py|"
    r"multiprocessing/(connection|synchronize|popen|queues)|asyncio/|concurrent/futures"
)
"""Files in which a thread is while it waits for somebody else."""
_LOOKED_AT = 6


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process when it was asked."""

    name: str
    """"driver", "PolicyWorker rank 3", ..."""
    host: str
    """The machine's name."""
    pid: int
    """Process id there."""
    doing: str
    """What it said it began last and has not ended; "idle" for nothing."""
    seconds: float
    """For how long."""
    count: int
    """What it has got done since it started."""
    state: str
    """"", or a word of `STATES` where the kernel does not let it run."""
    stack: str
    """All its threads, as faulthandler writes them; "" if it did not answer."""

    def to_dict(self) -> dict[str, Any]:
        """For a file; `Process(**mapping)` reads it."""
        return asdict(self)

    @property
    def main(self) -> list[str]:
        """Frames of the thread that does its work, innermost first."""
        threads = [part for part in self.stack.split("\n\n") if part.strip()]
        works = [t for t in threads if "worker_shell.py" in t and " in call" in t]
        return [line for line in (works or threads[-1:] or [""])[0].splitlines()[1:]]

    @property
    def waits(self) -> bool:
        """Whether it is waiting for another process."""
        if self.state or not self.stack:
            return False
        if self.doing == "idle":
            return True
        inner = self.main[:_LOOKED_AT]
        return any(
            (found := _FRAME.match(line)) and _WAITS.search(found["file"])
            for line in inner
        )

    @property
    def where(self) -> str:
        """The innermost line of a file that is neither Python's nor a library's."""
        frames = [found for line in self.main if (found := _FRAME.match(line))]
        own = [f for f in frames if "/lib/python" not in f["file"]] or frames
        if not own:
            return "it did not answer" if not self.stack else "not in Python"
        first = own[0]
        file = "/".join(Path(first["file"]).parts[-3:])
        return f"{file}:{first['line']} in {first['function']}"


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the processes that live, in the order of their ids."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # It is being written, or removed.
        if _state(record["pid"]) not in (None, "Z"):
            found.append(record)
    return found


def progress(folder: Path) -> int:
    """Return a number that changes whenever a process gets something done."""
    return sum(record["count"] + 1 for record in records(folder))


def ask(folder: Path, host: str, *, answer_s: float = ANSWER_S) -> list[Process]:
    """Let every process write its stacks; return what each one does.

    One that does not answer in time is returned without a stack.

    Args:
        folder: node-local folder of the records.
        host: name of this machine, for the reports.
        answer_s: how long to wait for the last.
    """
    asked = records(folder)
    files = {record["pid"]: folder / f"{record['pid']}.stacks" for record in asked}
    before = {pid: _size(path) for pid, path in files.items()}
    for pid in files:
        _signal(pid, pulse.STACKS)
    deadline = time.monotonic() + answer_s
    while time.monotonic() < deadline and not all(
        _size(path) > before[pid] for pid, path in files.items()
    ):
        time.sleep(0.05)
    time.sleep(0.05)  # The handler writes line by line.
    now = time.time()
    return [
        Process(
            name=record["name"],
            host=host,
            pid=record["pid"],
            doing=record["doing"],
            seconds=max(0.0, now - record["since"]),
            count=record["count"],
            state=STATES.get(_state(record["pid"]) or "Z", ""),
            stack=_after(files[record["pid"]], before[record["pid"]]),
        )
        for record in asked
    ]


def send_hang(folder: Path) -> None:
    """Raise `Hung` in the processes that take it and have not taken it yet.

    To be called until they end: a library may have caught the first one.
    """
    for record in records(folder):
        if "acknowledged" not in record:
            _signal(record["pid"], pulse.HANG)


def _signal(pid: int, number: int | None) -> None:
    """Send a signal to a process that has a handler for it; others it would end."""
    if number is None or not _catches(pid, number):
        return
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _catches(pid: int, number: int) -> bool:
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)", _status(pid), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def _state(pid: int) -> str | None:
    found = re.search(r"^State:\s*(\S)", _status(pid), re.MULTILINE)
    return found[1] if found else None


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _after(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
