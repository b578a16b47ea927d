"""One attempt of a run: the folder `attempts/<job>.<n>`, read beside a running job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_rl.launch import failure as failures
from nemo_rl.launch import record
from nemo_rl.launch.account import attempt_tail
from nemo_rl.launch.failure import Failure
from nemo_rl.launch.record import changed_at

FRESH_S = 60.0
"""An attempt whose nodes were heard of more recently counts as alive."""
_MEANINGS = {
    0: "done",
    2: "refused: the recipe, data or a path is wrong",
    75: "saved, to be continued",
    124: "stopped by the watchdog: no progress",
    130: "interrupted",
    137: "killed (SIGKILL): out of memory, or SLURM's time was up",
    139: "crashed (SIGSEGV)",
    143: "terminated (SIGTERM)",
}


@dataclass(frozen=True)
class Attempt:
    """One start of a job: `attempts/<job>.<n>`."""

    job_id: int
    number: int
    folder: Path
    facts: Mapping[str, Any] = field(repr=False)
    """attempt.json; {} before the head node's agent began."""

    @property
    def label(self) -> str:
        """As its folder is called: 4711.0."""
        return f"{self.job_id}.{self.number}"

    @cached_property
    def exit_code(self) -> int | None:
        """What the head's agent ended with; None while it runs, or if it never said."""
        text = text_of(self.folder / "exit_code").strip()
        if text.isdigit():
            return int(text)
        # A link of a chain that found nothing to do started no agent.
        words = text_of(self.folder.parents[1] / "EXIT_CODE").split()
        ended = len(words) == 2 and words[1] == str(self.job_id) and not self.facts
        return int(words[0]) if ended and words[0].isdigit() else None

    @cached_property
    def failure(self) -> Failure | None:
        """The first failure of the attempt: who, why, what to do; None for none.

        Where no agent began, job.log has to tell: of an image, or an interpreter.
        """
        found, code = failures.read(self.folder), self.exit_code
        if found is not None or self.facts or code in (None, 0, 2, 75):
            return found
        tail = attempt_tail(self.folder.parents[1] / "job.log", self.job_id)
        message = "the job's step did not start"
        step = Failure(
            node="", process="srun", message=message, exit_code=code, lines=tail
        )
        return step.explained()

    @cached_property
    def statuses(self) -> dict[str, dict[str, Any]]:
        """What each node's agent said last, by node."""
        found = {}
        for path in sorted((self.folder / "nodes").glob("*.json")):
            found[path.stem] = record.read(path.parent, path.name)
        return found

    @property
    def nodes(self) -> list[str]:
        """Names of its nodes, the head first."""
        return list(self.facts.get("node_names") or self.statuses)

    @property
    def started_at(self) -> float | None:
        """When its agent began, in seconds since 1970."""
        return self.facts.get("started_at")

    @cached_property
    def last_sign(self) -> float | None:
        """When a node last wrote; the end, once it has ended. Seconds since 1970."""
        paths = [self.folder / "exit_code", *(self.folder / "nodes").glob("*.json")]
        times = [when for path in paths if (when := changed_at(path)) is not None]
        return max(times, default=None)

    @property
    def elapsed_s(self) -> float | None:
        """Seconds from its start to its end or last sign of life."""
        if self.started_at is None or self.last_sign is None:
            return None
        return max(0.0, self.last_sign - self.started_at)

    @property
    def seems_alive(self) -> bool:
        """Whether it has not ended and a node wrote within the last minute."""
        if self.exit_code is not None or self.last_sign is None:
            return False
        return time.time() - self.last_sign < FRESH_S

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        if self.failure:
            return self.failure.headline
        if self.exit_code is not None:
            default = f"failed with exit code {self.exit_code}"
            return _MEANINGS.get(self.exit_code, default)
        if self.seems_alive:
            return "running"
        return "ended by SLURM: cancelled, out of time, preempted or a lost node"


def text_of(path: Path) -> str:
    """Return a file's text; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
