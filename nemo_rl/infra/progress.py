"""What a run's display knows: steps, the latest metrics, history, time that is left.

Numbers and text only: no terminal, no rich. Both consoles show what stands here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#@"

NAMES: dict[str, tuple[str, ...]] = {
    "reward": ("reward", "reward_mean", "mean_reward"),
    "length": ("response_length", "response_length_mean", "mean_response_length"),
    "kl": ("kl", "kl_to_reference", "kl_penalty", "reference_kl"),
    "loss": ("loss",),
    "accuracy": ("accuracy",),
    "margin": ("rewards_margin",),
    "grad_norm": ("grad_norm",),
    "tokens_per_s": ("tokens_per_s",),
    "step_s": ("timing/step_s", "timing/total_s", "timing/total_step_s"),
}
"""Shown value -> the metrics it may be called, the first present one wins."""

HEADLINES = ("reward", "loss")
"""What is drawn over the steps: the first of these that a step reports."""
_STEPS_FOR_ESTIMATE = 20


@dataclass(frozen=True)
class SampleChange:
    """One validation prompt and its answers before and after training.

    Attributes:
        prompt: what was asked.
        before: the response of the untrained model.
        after: the response of the trained model.
        answer: the right answer, if there is one.
        before_reward: reward of `before`; None if not known.
        after_reward: reward of `after`; None if not known.
    """

    prompt: str
    before: str
    after: str
    answer: str | None = None
    before_reward: float | None = None
    after_reward: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """What is shown when a run ends.

    Attributes:
        status: "completed", "preempted", ...
        steps: training steps completed.
        elapsed_s: seconds of training.
        metric: name of the validation metric.
        before: its value before training; None if not validated.
        after: its value now; None if not validated.
        samples: some prompts with the answers before and after.
        paths: label -> path or text, in the order shown.
    """

    status: str = "completed"
    steps: int = 0
    elapsed_s: float = 0.0
    metric: str = "accuracy"
    before: float | None = None
    after: float | None = None
    samples: Sequence[SampleChange] = ()
    paths: Mapping[str, str | Path | None] = field(default_factory=dict)


class Progress:
    """The state behind a display.

    Args:
        title: one line: algorithm and model.
        total_steps: the step at which the run ends; None if only time ends it.
        facts: label -> value, shown once or in the header.
        clock: seconds.
    """

    def __init__(
        self,
        title: str,
        total_steps: int | None,
        facts: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock."""
        self.title = title
        self.total_steps = total_steps
        self.facts = {str(k): str(v) for k, v in (facts or {}).items()}
        self.step = 0
        self.phase = ""
        self.values: dict[str, float] = {}
        self.headline = HEADLINES[0]
        self.history: list[float] = []
        self.validations: list[tuple[int, str, float]] = []
        self._clock = clock
        self._started = clock()
        self._last = self._started
        self._durations: deque[float] = deque(maxlen=_STEPS_FOR_ESTIMATE)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take in the metrics of a finished step."""
        now = self._clock()
        self._durations.append(now - self._last)
        self._last = now
        self.step = step
        self.values = {
            name: value
            for name, aliases in NAMES.items()
            if (value := lookup(metrics, aliases)) is not None
        }
        self.values.setdefault("step_s", self._durations[-1])
        known = [name for name in HEADLINES if name in self.values]
        if known:
            self.headline = known[0]
            self.history.append(self.values[known[0]])

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take in a validation; accuracy is shown, else the first number."""
        # Its duration must not count as training time of the next step.
        self._last = self._clock()
        numbers = {k: v for k in metrics if (v := lookup(metrics, (k,))) is not None}
        if not numbers:
            return
        plain = {name.rpartition("/")[2]: name for name in reversed(numbers)}
        name = next((n for n in ("accuracy", "reward") if n in plain), None)
        name = name or next(iter(numbers)).rpartition("/")[2]
        self.validations.append((step, name, numbers[plain[name]]))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the display."""
        return self._clock() - self._started

    @property
    def fraction(self) -> float:
        """Share of the steps that is done, 0 to 1; 0 without a known end."""
        if not self.total_steps:
            return 0.0
        return min(1.0, self.step / self.total_steps)

    @property
    def left_s(self) -> float | None:
        """Expected seconds to the last step, by the latest steps; None: no idea."""
        if not self.total_steps or not self._durations:
            return None
        steps = max(0, self.total_steps - self.step)
        mean = sum(self._durations) / len(self._durations)
        since_last = min(self._clock() - self._last, mean) if steps else 0.0
        return max(0.0, steps * mean - since_last)


def lookup(metrics: Mapping[str, Any], names: Sequence[str]) -> float | None:
    """The first of `names`, with or without a train/ or val/ prefix, as a float."""
    for name in names:
        for key in (name, f"train/{name}", f"val/{name}", f"throughput/{name}"):
            if key not in metrics or isinstance(metrics[key], str):
                continue
            try:
                return float(metrics[key])
            except (TypeError, ValueError, RuntimeError):
                continue
    return None


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """History as one line of at most `width` characters, lowest to highest block.

    More values than characters are averaged in groups; what is not a number is a
    blank; a constant is drawn in the middle.
    """
    if width < 1 or not values:
        return ""
    if len(values) > width:
        bounds = [index * len(values) // width for index in range(width + 1)]
        groups = [values[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        values = [_finite_mean(group) for group in groups]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, span = min(finite), max(finite) - min(finite)

    def block(value: float) -> str:
        if not math.isfinite(value):
            return " "
        if span <= 0:
            return blocks[len(blocks) // 2 - 1]
        return blocks[round((value - low) / span * (len(blocks) - 1))]

    return "".join(block(value) for value in values)


def duration(seconds: float | None) -> str:
    """12:04, 1:02:03, 2d 03:04; "-" where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def number(value: float | None) -> str:
    """A metric for reading: 0.6125, -0.0031, 1.2e-05, 1,204; "-" if absent."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1e-3:
        return f"{value:.4f}" if size < 1 else f"{value:.3f}"
    if size < 1e-7:  # what is left of a sum that is zero
        return "0.0000"
    return f"{value:.1e}"


def shortened(text: str, limit: int, *, keep_end: bool = False) -> str:
    """One line of at most `limit` characters: the beginning, or the end, of a text.

    Args:
        text: any text; line breaks become blanks, control characters go.
        limit: characters.
        keep_end: keep the end, where the question of a long prompt stands.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= limit:
        return line
    kept = max(1, limit - 3)
    return f"...{line[-kept:]}" if keep_end else f"{line[:kept]}..."


def _finite_mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
