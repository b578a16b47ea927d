"""The console of a run: a live panel on a terminal, one line per step elsewhere.

`make_console` chooses. What is shown is in `progress`; the panel is `console_live`,
drawn by `console_view`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from nemo_rl.infra.progress import (
    Progress,
    RunSummary,
    SampleChange,
    duration,
    number,
    shortened,
)
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import require

__all__ = ["Console", "RunSummary", "SampleChange", "make_console"]


class Console(Protocol):
    """What a trainer asks of the screen. Every method may be called at any time."""

    def start(
        self, title: str, total_steps: int | None, facts: Mapping[str, Any]
    ) -> None:
        """Begin: a title, the step at which the run ends, and facts about the run."""

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the metrics of a finished step."""

    def phase(self, name: str) -> None:
        """Say what is being done now: "generating", "training", ..."""

    def message(self, text: str) -> None:
        """Show a line that stays."""

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the result of a validation."""

    def finish(self, summary: RunSummary) -> None:
        """Show how it went, and end."""

    def stop(self) -> None:
        """Give the terminal back; safe to call twice and after an error."""


def make_console(
    mode: str = "auto", *, stream: TextIO | None = None, width: int | None = None
) -> Console:
    """Choose how the run is shown.

    Args:
        mode: "rich" (live panel), "plain" (lines), "off", or "auto": the panel on a
            terminal, lines in a file or a pipe.
        stream: where to write; standard output if None.
        width: columns of the panel; those of the terminal if None.

    Raises:
        ConfigurationError: an unknown mode, or "rich" without the package rich.
    """
    if mode == "off":
        return OffConsole()
    if mode == "plain":
        return PlainConsole(stream)
    if mode == "rich":
        require("rich", instead="set logger.console to plain")
        return _live(stream, width)
    if mode != "auto":
        raise ConfigurationError(
            f"logger.console={mode!r} is not known. Choose auto, rich, plain or off."
        )
    out = stream or sys.stdout
    try:
        import rich.console
    except ImportError:
        return PlainConsole(stream)
    terminal = out.isatty() and not rich.console.Console(file=out).is_dumb_terminal
    return _live(stream, width) if terminal else PlainConsole(stream)


def _live(stream: TextIO | None, width: int | None) -> Console:
    from nemo_rl.infra.console_live import RichConsole

    return RichConsole(stream, width)


class OffConsole:
    """Shows nothing."""

    def start(
        self, title: str, total_steps: int | None, facts: Mapping[str, Any]
    ) -> None:
        """Do nothing."""

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def phase(self, name: str) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, summary: RunSummary) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class PlainConsole:
    """One line per step: for files, pipes, CI and the logs of SLURM.

    Args:
        stream: where to write; standard output at that moment if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write nothing yet."""
        self._stream = stream
        self._progress = Progress("", None)

    def start(
        self, title: str, total_steps: int | None, facts: Mapping[str, Any]
    ) -> None:
        """Write the title and one line per fact."""
        self._progress = Progress(title, total_steps, facts)
        self._write(title)
        for label, value in self._progress.facts.items():
            self._write(f"  {label}: {value}")

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line."""
        state = self._progress
        state.update(step, metrics)
        total = f"/{state.total_steps}" if state.total_steps else ""
        labels = {
            "reward": "reward",
            "length": "length",
            "kl": "kl",
            "accuracy": "accuracy",
            "margin": "margin",
            "loss": "loss",
            "grad_norm": "grad_norm",
            "tokens_per_s": "tokens/s",
        }
        parts = [f"step {step}{total}"]
        parts += [
            f"{label} {number(state.values[name])}"
            for name, label in labels.items()
            if name in state.values
        ]
        parts.append(f"{state.values['step_s']:.1f} s")
        parts.append(f"elapsed {duration(state.elapsed_s)}")
        parts.append(f"left {duration(state.left_s)}")
        self._write(" | ".join(parts))

    def phase(self, name: str) -> None:
        """Write nothing: a log has one line per step."""

    def message(self, text: str) -> None:
        """Write a line."""
        self._write(text)

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write one line, with the first validation beside it."""
        self._progress.validation(step, metrics)
        if not self._progress.validations:
            return
        _, name, value = self._progress.validations[-1]
        first_step, _, first = self._progress.validations[0]
        first_text = f" (step {first_step}: {number(first)})" if step else ""
        self._write(f"validation at step {step}: {name} {number(value)}{first_text}")

    def finish(self, summary: RunSummary) -> None:
        """Write result, samples and paths."""
        self._write(
            f"{summary.status}: {summary.steps} steps in {duration(summary.elapsed_s)}"
        )
        if summary.after is not None:
            before = "" if summary.before is None else f"{number(summary.before)} -> "
            self._write(f"{summary.metric}: {before}{number(summary.after)}")
        for sample in summary.samples:
            self._write(f"  prompt: {shortened(sample.prompt, 200, keep_end=True)}")
            if sample.answer is not None:
                self._write(f"    answer: {shortened(sample.answer, 200)}")
            self._write(f"    before: {shortened(sample.before, 200)}")
            self._write(f"    after:  {shortened(sample.after, 200)}")
        for label, path in summary.paths.items():
            if path is not None:
                self._write(f"{label}: {path}")

    def stop(self) -> None:
        """Nothing to give back."""

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        # A log of a C locale must not end the training over an arrow.
        # A full disk or a reader that has gone must not end it either.
        with contextlib.suppress(OSError):
            stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
            stream.flush()
