"""What the files of a run's folder say about it, read without torch or SLURM.

`slurm/README.md` lists the files; nothing here waits or writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.launch.driver import PROGRESS, RESOLVED

EXIT_CODE = "EXIT_CODE"
JOB_LOG = "job.log"
TAIL_BYTES = 64 * 1024


def read_end(folder: Path) -> tuple[int, str] | None:
    """Return exit code and job id of the last job that ended for good, None before."""
    try:
        code, job = (folder / EXIT_CODE).read_text(encoding="ascii").split()
        return int(code), job
    except (FileNotFoundError, ValueError):
        return None


def summary(folder: Path) -> dict[str, Any]:
    """Return what there is: exit_code, step, checkpoint, metrics, run_dir.

    A value that no file tells is None ({} for metrics). `metrics` are those of the
    last step as the logger wrote them, such as "train/loss".
    """
    end = read_end(folder)
    metrics: dict[str, float] = {}
    step = None
    for line in _last_lines(_log_dir(folder) / "metrics.jsonl"):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # The first of the lines read is cut off.
        if step is None or entry["step"] > step:
            step, metrics = entry["step"], {}
        if entry["step"] == step:
            metrics |= entry
    metrics = {k: v for k, v in metrics.items() if k not in ("step", "time")}
    progress = folder / PROGRESS
    checkpoint = progress.read_text().strip() if progress.is_file() else None
    return {
        "exit_code": end[0] if end else None,
        "step": step,
        "checkpoint": checkpoint,
        "metrics": metrics,
        "run_dir": str(folder),
    }


def tail(folder: Path, lines: int = 20) -> str:
    """Return the end of the job's log."""
    return "\n".join(list(_last_lines(folder / JOB_LOG))[-lines:])


def _log_dir(folder: Path) -> Path:
    """Where the run's metrics are: a recipe may name an absolute log_dir."""
    try:
        resolved = yaml.safe_load((folder / RESOLVED).read_text(encoding="utf-8"))
        return folder / resolved["logger"]["log_dir"]
    except (FileNotFoundError, KeyError, TypeError):
        return folder / "logs"


def _last_lines(path: Path) -> Iterable[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
