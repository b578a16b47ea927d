"""When an attempt reached what, from its first line to its first step and its end.

Agents and the driver write down moments as they pass; this module has their names and
reads them. Knows nothing about how a phase is done. Clocks of nodes may differ by what
the check `clock` allows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.trainers.callbacks import Callback
from nemo_rl.utils.files import write_json

DRIVER = "driver.json"
"""File of the attempt folder in which the driver writes its moments."""
CLOSED = "closed"
"""File of the attempt folder that `slurm/job.sh` writes when srun has ended."""
VARIABLES = {"job": "NEMO_RL_JOB_BEGAN", "srun": "NEMO_RL_STEP_BEGAN"}
"""Moment -> variable in which `slurm/job.sh` hands it to the agents; epoch seconds."""
MOMENTS = {
    "job": "the batch script began",
    "srun": "site and run folder read, srun called",
    "agent": "an agent runs on every node",
    "checked": "nodes checked",
    "ray": "Ray's head answers",
    "joined": "every node has joined Ray",
    "driver": "driver started",
    "imported": "driver: recipe's modules imported",
    "built": "driver: recipe read, trainer made",
    "ready": "driver: data, workers and model are ready",
    "stepped": "first training step",
    "ended": "driver ended",
    "released": "no process is left on any node",
    "closed": "srun ended",
}
"""Moment -> what was reached then, in the usual order."""
TEARDOWN = ("ended", "released", "closed")


@dataclass(frozen=True)
class Moment:
    """Something that was reached."""

    name: str
    at: float
    """Seconds since 1970; of several nodes the last one's."""
    node: str = ""
    """The last node to reach it, where several do."""

    @property
    def meaning(self) -> str:
        """What was reached."""
        return MOMENTS.get(self.name, self.name)


class DriverMoments(Callback):
    """Writes down when the driver reached what.

    Args:
        path: the file; None writes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        """Nothing is written yet."""
        self._path = path
        self._reached: dict[str, float] = {}

    def reached(self, name: str) -> None:
        """Write the present time down, unless it was reached before."""
        if name not in self._reached:
            self._reached[name] = time.time()
            if self._path is not None:
                write_json(self._path, self._reached)

    def on_train_begin(self, trainer: Any) -> None:
        """Set-up is over."""
        self.reached("ready")

    def on_step_end(self, trainer: Any, step: int, metrics: dict[str, float]) -> None:
        """A step is over."""
        self.reached("stepped")


def read(folder: Path) -> list[Moment]:
    """Return the moments of an attempt in the order of time; [] where it has none.

    Args:
        folder: `attempts/<job>.<n>`.
    """
    found: dict[str, Moment] = {}
    for path in sorted((folder / "nodes").glob("*.json")):
        _add(found, _content(path).get("reached"), path.stem)
    _add(found, _content(folder / DRIVER), "")
    closed = _content(folder / CLOSED)
    _add(found, {"closed": closed} if isinstance(closed, float) else None, "")
    return sorted(found.values(), key=lambda moment: moment.at)


def intervals(moments: Iterable[Moment]) -> list[tuple[Moment, float, float]]:
    """Return (moment, seconds since the first, seconds since the one before)."""
    ordered = list(moments)
    before = [*ordered[:1], *ordered]
    return [
        (moment, moment.at - ordered[0].at, moment.at - previous.at)
        for moment, previous in zip(ordered, before, strict=False)
    ]


def handed(variables: Mapping[str, str]) -> dict[str, float]:
    """Return the moments that `slurm/job.sh` hands over in the environment."""
    found = {}
    for name, variable in VARIABLES.items():
        try:
            found[name] = float(variables.get(variable, ""))
        except ValueError:
            continue  # Not started by job.sh, or by an older one.
    return found


def _add(found: dict[str, Moment], reached: Any, node: str) -> None:
    if not isinstance(reached, dict):
        return
    for name, at in reached.items():
        if isinstance(at, float) and (name not in found or at > found[name].at):
            found[name] = Moment(name, at, node)


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
