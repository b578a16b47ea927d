"""failure.json: which process on which node failed first, why, and what to do.

The first failure of an attempt is kept, later ones are its consequences. Knows how to
word one and where it is written; `causes.py` knows what may lie behind it, and
`ending.py` who is asked.
"""

from __future__ import annotations

import json
import os
import re
import signal
import textwrap
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nemo_rl.launch.causes import CAUSES, CONSEQUENCES, FROM_OUTSIDE, diagnose
from nemo_rl.utils.files import write_json

FAILURE = "failure.json"
LINES = 20
"""Last lines of a log that are kept."""
WIDTH = 88
_LINE_WIDTH = 300
_MESSAGE = 4000


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Who failed, how, and why."""

    node: str
    """SLURM's name of the node; "" where no agent began."""
    process: str
    """"driver", "worker", "raylet" or another of Ray's, "agent", "node", "checks"."""
    message: str
    """What was noticed, in words; the exception's where there is one."""
    rank: int | None = None
    """Of a worker."""
    group: str = ""
    """Of a worker: the class that runs in its group."""
    pid: int | None = None
    """Process id on that node."""
    exit_code: int | None = None
    """As the shell counts, 128 + n for signal n; None where nobody saw it."""
    raised: bool = False
    """Whether it raised an exception, as opposed to being gone."""
    phase: str = ""
    """What the node was doing: starting, preflight, training."""
    time: float = field(default_factory=time.time)
    """When it was noticed, in seconds since 1970."""
    lines: tuple[str, ...] = ()
    """Last lines of its log."""
    cause: str = ""
    """Likely cause; "" where none is known."""
    evidence: str = ""
    """The line that tells the cause."""
    cure: str = ""
    """What to do."""
    again: bool = True
    """Whether another attempt may go better."""
    logs: str = ""
    """Where its logs are."""

    @property
    def signal(self) -> str:
        """Name of the signal that ended it, such as SIGKILL; "" for none."""
        if self.exit_code is None or not 128 < self.exit_code < 128 + signal.NSIG:
            return ""
        try:
            return signal.Signals(self.exit_code - 128).name
        except ValueError:
            return f"signal {self.exit_code - 128}"

    @property
    def summary(self) -> str:
        """One line: who and how, without quotes and backslashes."""
        first = next(iter(self.message.splitlines()), "").strip().rstrip(":")
        text = f"{self._who}{self._how}"
        text = f"node {self.node}: {text}" if self.node else text
        if self.raised or self.process in ("node", "checks", "SLURM"):
            text = first if self.node in first else f"{text}: {first}"
        text = text.encode("ascii", "replace").decode()
        return re.sub(r"[\"\\]", "'", text)[:_LINE_WIDTH]

    @property
    def headline(self) -> str:
        """The summary and the likely cause, for a table."""
        return f"{self.summary}: {self.cause}" if self.cause else self.summary

    @property
    def _who(self) -> str:
        who = self.process
        if self.rank is not None:
            who += f" of rank {self.rank}"
            who += f" ({self.group})" if self.group else ""
        return who + (f", process {self.pid}," if self.pid else "")

    @property
    def _how(self) -> str:
        if self.raised:
            return " failed"
        if self.signal:
            return f" was killed by {self.signal}"
        if self.exit_code is not None:
            return f" ended with exit code {self.exit_code}"
        return " is lost" if self.process == "node" else " is gone"

    def explained(self, evidence: Iterable[str] = ()) -> Failure:
        """Return it with cause and cure, as far as they can be told.

        Args:
            evidence: what the node's kernel says. It counts where a process is gone,
                or a GPU or NCCL is complained of.
        """
        kernel = list(evidence)
        about_gpu = re.search(r"cuda|nccl|xid", self.message, re.IGNORECASE)
        strongest = kernel if not self.raised or about_gpu else []
        found = diagnose(strongest, self.message)
        if found is None:
            # A log has warnings enough: of what comes from outside it knows nothing.
            names = {cause.name for cause in CAUSES} - CONSEQUENCES
            names = FROM_OUTSIDE if self.signal == "SIGKILL" else names
            found = diagnose(reversed(self.lines), names=names)
        if found is not None:
            cause, line = found
            advice = _own_advice(self.message) if self.raised else ""
            return replace(
                self,
                exit_code=self.exit_code or self._told_signal(cause.name),
                cause=cause.text,
                evidence=line[:_LINE_WIDTH],
                cure=advice or cause.cure,
                again=cause.again,
            )
        mistake = self.raised and self.process in ("driver", "worker")
        return replace(self, again=not mistake, **_by_signal(self))

    def _told_signal(self, cause: str) -> int | None:
        """Exit code of a process whose end nobody saw but itself or the kernel."""
        if self.raised:
            return None
        if cause == "oom-killer":
            return 128 + signal.SIGKILL
        match = re.search(r"\*\*\* (SIG[A-Z]+) received", "\n".join(self.lines))
        known = match is not None and hasattr(signal, match[1])
        return 128 + signal.Signals[match[1]] if known else None

    def block(self, *, attempt: str = "") -> str:
        """Return some lines for the log: who, why, what to do, where to look."""
        when = datetime.fromtimestamp(self.time).strftime("%Y-%m-%d %H:%M:%S")
        phase = f", in phase {self.phase}" if self.phase else ""
        message = _ADVICE.sub("", self.message).strip()
        rows = [
            ("failed", self.summary),
            ("when", f"{when}{phase}"),
            ("message", "" if message == self.summary else message),
            ("cause", self.cause or "not known to us; the last lines may tell"),
            ("told by", self.evidence if self.evidence not in message else ""),
            ("to do", self.cure),
            ("lines", "\n".join(self.lines)),
            ("logs", self.logs),
        ]
        title = f"first failure of attempt {attempt}" if attempt else "first failure"
        parts = [f"{f'---- {title} ':-<{WIDTH}}"]
        parts += [_row(label, text) for label, text in rows if text]
        return "\n".join([*parts, "-" * WIDTH])

    def as_json(self) -> dict[str, Any]:
        """Everything, for failure.json."""
        return asdict(self) | {"signal": self.signal, "summary": self.summary}


def _row(label: str, text: str) -> str:
    wide = WIDTH - 10
    lines: list[str] = []
    for line in text.splitlines():
        # What others printed keeps its shape.
        whole = [line] if label in ("lines", "logs") else []
        lines += whole or textwrap.wrap(line, wide) or [""]
    shown = "\n".join(f"{'':10}{line}".rstrip() for line in lines)
    return f"{label:<10}{shown[10:]}"


_ADVICE = re.compile(r"^what to do: (.*)\n?", re.IGNORECASE | re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


def _own_advice(message: str) -> str:
    """What the exception itself says to do; then the table need not."""
    match = _ADVICE.search(message)
    return match[1].strip() if match else ""


def _by_signal(failure: Failure) -> dict[str, str]:
    """What can be said where no line tells a cause."""
    if failure.signal == "SIGKILL" or (
        failure.process == "worker" and not failure.raised
    ):
        return {
            "cause": "killed without a word: by the OOM killer, or by somebody",
            "cure": f"on {failure.node}: dmesg -T | grep -i 'killed process', and "
            "sacct -j JOB --format=JobID,MaxRSS; the job goes on from its checkpoint",
        }
    if failure.signal in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"):
        return {
            "cause": "native code crashed",
            "cure": "the stack is in the node's logs; if only one node does it, "
            "suspect its memory, else a library",
        }
    if failure.process == "node":
        return {
            "cause": "the node lost its power or its network, or hangs",
            "cure": f"scontrol show node {failure.node}; the job goes on without it "
            "once SLURM has marked it",
        }
    return {"cure": _own_advice(failure.message)}


def last_lines(text: str, count: int = LINES) -> tuple[str, ...]:
    """Return the last lines that are not empty, each cut to 300 characters."""
    lines = [line.rstrip() for line in _COLOURS.sub("", text).splitlines()]
    # Python's underlining of a traceback's columns takes lines and tells little.
    told = [line[:_LINE_WIDTH] for line in lines if line.strip(" ^~")]
    return tuple(told[-count:])


def record(folder: Path, failure: Failure) -> bool:
    """Write failure.json unless the attempt has one; return whether it was written."""
    content = failure.as_json()
    content["message"] = content["message"][:_MESSAGE]
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        handle = os.open(folder / FAILURE, flags, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def rewrite(folder: Path, failure: Failure) -> None:
    """Write what is known by now of the failure that is recorded."""
    write_json(folder / FAILURE, failure.as_json())


def read(folder: Path) -> Failure | None:
    """Return the attempt's first failure; None where there is none, or half of one."""
    try:
        content = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return from_json(content)


def from_json(content: Any) -> Failure | None:
    """Return what `as_json` wrote; None for anything else."""
    if not isinstance(content, Mapping):
        return None
    known = {k: v for k, v in content.items() if k in Failure.__dataclass_fields__}
    known["lines"] = tuple(known.get("lines", ()))
    with suppress(TypeError):
        return Failure(**known)
    return None
