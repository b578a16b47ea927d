"""A run folder as it can be read beside a running job: attempts, progress, metrics.

Reads files only and asks no scheduler; what is missing is None or empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.infra.progress import HEADLINES, NAMES, lookup
from nemo_rl.infra.touch_files import STOPPED
from nemo_rl.launch import record
from nemo_rl.launch.record import changed_at
from nemo_rl.launch.runs.attempt import Attempt, text_of

ATTEMPTS = "attempts"
JOB_LOG = "job.log"
RESOLVED = "resolved.yaml"
_TAIL_BYTES = 256 * 1024
_STEPS_FOR_ESTIMATE = 20
_ATTEMPT = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True)
class Training:
    """Where the training is, from metrics.jsonl and resolved.yaml."""

    step: int
    total_steps: int | None
    headline: str
    """Name of the value: reward, loss."""
    value: float | None
    at: float | None
    """When the step ended, in seconds since 1970."""
    step_s: float | None
    """Mean seconds of the last steps, pauses between attempts left out."""
    values: Mapping[str, float]

    @property
    def left_s(self) -> float | None:
        """Seconds to the last step, at the present speed."""
        if self.total_steps is None or self.step_s is None:
            return None
        return max(0, self.total_steps - self.step) * self.step_s


class RunFolder:
    """Reads one run folder; make a new one to read it again.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        """Read nothing yet."""
        self.path = path

    @property
    def label(self) -> str:
        """`<recipe>/<job id>`, as commands take it."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def log(self) -> Path:
        """The log of all attempts."""
        return self.path / JOB_LOG

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What was asked for (`record.read_run`); {} where nothing says."""
        return record.read_run(self.path)

    @cached_property
    def attempts(self) -> list[Attempt]:
        """All attempts, in the order in which they began."""
        found = []
        for folder in _entries(self.path / ATTEMPTS):
            if match := _ATTEMPT.fullmatch(folder.name):
                facts = record.read(folder, record.ATTEMPT)
                found.append(Attempt(int(match[1]), int(match[2]), folder, facts))
        return sorted(found, key=lambda attempt: (attempt.job_id, attempt.number))

    @cached_property
    def job_ids(self) -> list[int]:
        """Numbers of all jobs that work on it, in their order."""
        found = [int(n) for n in self.facts.get("jobs", ()) if n.isdigit()]
        found += [attempt.job_id for attempt in self.attempts]
        if not found:
            # A task that waits has the number of its array.
            name = self.array_task or self.path.name
            number = name.partition("_")[0]
            found = [int(number)] if number.isdigit() else []
        return list(dict.fromkeys(found))

    @property
    def array_task(self) -> str | None:
        """ "17_0" of a task of a job array; its number may be the whole array's."""
        names = [*self.facts.get("jobs", ()), self.path.name]
        return next((n for n in names if re.fullmatch(r"\d+_\d+", n)), None)

    @cached_property
    def config(self) -> dict[str, Any]:
        """resolved.yaml, the configuration as it ran; {} before training began."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            content = yaml.load(text_of(self.path / RESOLVED), loader)  # noqa: S506
        except yaml.YAMLError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def metrics_path(self) -> Path:
        """The file of metrics."""
        folder = (self.config.get("logger") or {}).get("log_dir") or "logs"
        return self.path / folder / "metrics.jsonl"

    @cached_property
    def checkpoint(self) -> tuple[str, float | None]:
        """Path of the newest checkpoint ("" for none) and when it was written."""
        progress = self.path / "PROGRESS"
        return text_of(progress).strip(), changed_at(progress)

    @cached_property
    def end(self) -> tuple[int, str] | None:
        """Exit code and job ("17", "17_0") of the last that ended for good, or None."""
        words = text_of(self.path / "EXIT_CODE").split()
        known = len(words) == 2 and words[0].isdigit()
        return (int(words[0]), words[1]) if known else None

    @property
    def submitted_at(self) -> float | None:
        """Seconds since 1970; of a run without manifest, when its folder was made."""
        return self.facts.get("submitted_at") or changed_at(self.path / ATTEMPTS)

    @property
    def was_stopped(self) -> bool:
        """Whether the file STOP ended it."""
        return (self.path / STOPPED).exists()

    @cached_property
    def training(self) -> Training | None:
        """Where the training is; None before its first step."""
        rows = [row for row in _tail_rows(self.metrics_path) if _is_step(row)]
        if not rows:
            return None
        last = rows[-1]
        name = next((n for n in HEADLINES if lookup(last, NAMES[n]) is not None), "")
        values = {n: v for n in NAMES if (v := lookup(last, NAMES[n])) is not None}
        recent = rows[-_STEPS_FOR_ESTIMATE:]
        seconds = [s for row in recent if (s := lookup(row, NAMES["step_s"]))]
        algorithm = self.config.get("algorithm") or ""
        section = self.config.get(algorithm) or {}
        return Training(
            step=int(last["step"]),
            total_steps=section.get("max_num_steps"),
            headline=name,
            value=values.get(name),
            at=_seconds(last.get("time")),
            step_s=sum(seconds) / len(seconds) if seconds else None,
            values=values,
        )

    def summary(self) -> dict[str, Any]:
        """Return what there is: exit_code, step, checkpoint, metrics, run_dir.

        A value that no file tells is None, metrics then {}. They are those of the last
        step by the logger's names, such as "train/loss".
        """
        rows = [row for row in _tail_rows(self.metrics_path) if "step" in row]
        step = max((row["step"] for row in rows), default=None)
        metrics: dict[str, Any] = {}
        for row in rows:
            if row["step"] == step:
                metrics |= row
        return {
            "exit_code": self.end[0] if self.end else None,
            "step": step,
            "checkpoint": self.checkpoint[0] or None,
            "metrics": {k: v for k, v in metrics.items() if k not in ("step", "time")},
            "run_dir": str(self.path),
        }

    def curve(self) -> tuple[str, list[float]]:
        """Return the name and all values of the headline, one per step."""
        by_name: dict[str, dict[int, float]] = {name: {} for name in HEADLINES}
        for row in filter(_is_step, _rows(self.metrics_path)):
            for name, values in by_name.items():
                if (value := lookup(row, (f"train/{name}",))) is not None:
                    values[int(row["step"])] = value
        for name, values in by_name.items():
            if values:
                return name, [values[step] for step in sorted(values)]
        return "", []

    def node_hours(self) -> float | None:
        """Return nodes x hours of all attempts; None if no attempt has told."""
        spent = [
            len(attempt.nodes) * attempt.elapsed_s / 3600
            for attempt in self.attempts
            if attempt.elapsed_s is not None
        ]
        return sum(spent) if spent else None


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return any(
        (path / name).exists()
        for name in (record.RUN, record.LAUNCH, ATTEMPTS, JOB_LOG, RESOLVED)
    )


def _is_step(row: Mapping[str, Any]) -> bool:
    """Rows of validations have a step, too."""
    return "step" in row and any(name.startswith("train/") for name in row)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from _parsed(file)
    except OSError:
        return


def _tail_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the end of a long file; a torn first or last one is left."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return list(_parsed(text.splitlines()))


def _parsed(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _seconds(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None
