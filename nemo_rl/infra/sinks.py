"""Places on disk where metrics go: JSONL and TensorBoard; and what a place must offer.

A sink receives finished tags and numbers; it knows nothing of prefixes, configs or
training. Services are in `tracking_sinks.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from nemo_rl.utils.files import prepare_jsonl
from nemo_rl.utils.imports import require


class Sink(Protocol):
    """What the facade asks of a place to log to.

    Attributes:
        name: for messages.
    """

    name: str

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """Exceptions of its library: they switch it off, training goes on."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers under their tags."""

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Record a text in Markdown."""

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Record the configuration of the run, once."""

    def close(self) -> None:
        """Write out everything."""


class JsonlSink:
    """One line per call in `metrics.jsonl`: {"step": 3, "time": ..., "train/loss": .1}.

    JSON has no NaN and no infinity: these are null, and the line says what they
    were under "nonfinite".

    Args:
        path: the file; see `prepare_jsonl` for what happens to old rows.
        resume_step: the step the run continues after; None or 0 for a fresh run.
    """

    name = "metrics.jsonl"
    errors = (OSError,)

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        """Cut or set aside old rows and open the file to append."""
        prepare_jsonl(path, resume_step)
        self.path = path
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line and hand it to the operating system."""
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        row: dict[str, Any] = {"step": step, "time": _now(), **finite}
        odd = {k: str(v) for k, v in metrics.items() if not math.isfinite(v)}
        if odd:
            row["nonfinite"] = odd
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Texts are not kept here; rollouts.jsonl has every completion."""

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """The configuration stands in the run folder as a file of its own."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Event files for TensorBoard; a resumed run hides the steps it repeats.

    Args:
        directory: where the event files go.
        resume_step: events after it, written by the run that was stopped, are
            marked as superseded.
    """

    name = "TensorBoard"
    errors = (OSError,)

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        """Open an event file.

        Raises:
            ConfigurationError: tensorboard is not installed.
        """
        require("tensorboard", instead="set logger.tensorboard_enabled to false")
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        purge = resume_step + 1 if resume_step else 0
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one scalar per tag and flush, so that a live view is up to date."""
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Add Markdown to the Text tab."""
        self._writer.add_text(tag, text, step)
        self._writer.flush()

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Add the configuration to the Text tab as indented JSON."""
        lines = json.dumps(config, indent=2, default=str).splitlines()
        self.log_text("config", "\n".join("    " + line for line in lines), 0)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
