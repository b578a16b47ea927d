"""Callbacks for what many runs want: saving, stopping early, logging, progress.

Knows no algorithm: any trainer has ``stop``, ``save_checkpoint`` and ``state``.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TextIO

from nemo_rl.infra.progress import duration, lookup, number
from nemo_rl.trainers.callbacks import HOOKS, Callback
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

log = logging.getLogger(__name__)

Mode = Literal["max", "min"]


class LambdaCallback(Callback):
    """Hooks from functions.

    Example::

        trainer.fit(data, callbacks=[
            LambdaCallback(on_step_end=lambda trainer, step, metrics: print(step))
        ])

    Args:
        **hooks: name of a hook of ``Callback`` -> function with its arguments.

    """

    def __init__(self, **hooks: Callable[..., None]) -> None:
        """Take the functions in place of the methods."""
        for name, function in hooks.items():
            if name not in HOOKS:
                raise ConfigurationError(
                    f"{name} is not a hook.{did_you_mean(name, HOOKS)} "
                    f"Hooks: {', '.join(HOOKS)}."
                )
            setattr(self, name, function)


class LoggingCallback(Callback):
    """Writes some metrics of every n-th step to the Python logger "nemo_rl".

    Args:
        every: steps between two lines.
        metrics: which, as far as a step has them; all of them if empty.
    """

    def __init__(
        self, every: int = 10, metrics: Sequence[str] = ("loss", "reward", "grad_norm")
    ) -> None:
        """Check the interval."""
        self.every, self.metrics = _positive("every", every), tuple(metrics)

    def on_step_end(self, trainer: Any, step: int, metrics: dict[str, float]) -> None:
        """Write a line, if it is this step's turn."""
        if step % self.every == 0:
            _write_line(f"step {step}", metrics, self.metrics)

    def on_validation_end(
        self, trainer: Any, step: int, metrics: dict[str, float]
    ) -> None:
        """Write a line with all metrics."""
        _write_line(f"validation at step {step}", metrics, ())


class ProgressCallback(Callback):
    """One line per n steps with a bar and the time that is left.

    For notebooks and ``logger.console: off``; the trainer's console shows more.

    Args:
        every: steps between two lines.
        stream: where to; standard output if None.
        clock: seconds.
    """

    _width = 20

    def __init__(
        self,
        every: int = 1,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the interval."""
        self.every = _positive("every", every)
        self._stream, self._clock = stream, clock
        self._started, self._first = 0.0, 0

    def on_train_begin(self, trainer: Any) -> None:
        """Start the clock; steps of before a resume took none of its time."""
        self._started, self._first = self._clock(), trainer.state.step

    def on_step_end(self, trainer: Any, step: int, metrics: dict[str, float]) -> None:
        """Write the line, if it is this step's turn or the last."""
        total = trainer.total_steps
        if step % self.every and step != total:
            return
        elapsed = self._clock() - self._started
        left = elapsed / (step - self._first) * (total - step)
        bar = "#" * (self._width * step // total)
        shown = [f"[{bar:-<{self._width}}] {step}/{total}"]
        for name in ("reward", "loss"):
            value = lookup(metrics, (name,))
            if value is not None:
                shown.append(f"{name} {number(value)}")
        shown.append(f"elapsed {duration(elapsed)}, left {duration(left)}")
        print("  ".join(shown), file=self._stream or sys.stdout, flush=True)


class CheckpointCallback(Callback):
    """Saves beside ``checkpointing.save_period``: by steps, by time, at a best value.

    The checkpoint is written between two steps, when everything about the finished one
    is known. Which are kept is decided by ``checkpointing.keep_top_k``.

    Args:
        every_steps: save after every so many steps.
        every_minutes: save when so much time has passed since the last checkpoint.
        metric: save when this validation metric is the best so far.
        mode: "max" if a higher metric is better, "min" if a lower one.
        clock: seconds.

    Raises:
        ConfigurationError: none of the three is given, or one is not positive.
    """

    def __init__(
        self,
        *,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        metric: str | None = None,
        mode: Mode = "max",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the arguments."""
        if every_steps is None and every_minutes is None and metric is None:
            raise ConfigurationError(
                "CheckpointCallback saves nothing: give every_steps, every_minutes or "
                "metric."
            )
        self.every_steps = every_steps and _positive("every_steps", every_steps)
        self.every_minutes = every_minutes and _positive("every_minutes", every_minutes)
        self.metric = metric
        self._best = _Best(mode)
        self._clock, self._saved_at = clock, clock()
        self._wanted = False

    def on_train_begin(self, trainer: Any) -> None:
        """Start the clock, and remember the best of before a resume."""
        self._saved_at = self._clock()
        for row in trainer.state.validation_history if self.metric else ():
            self._best.improved(row.get(self.metric, math.nan))

    def on_validation_end(
        self, trainer: Any, step: int, metrics: dict[str, float]
    ) -> None:
        """Want a checkpoint of the best value yet."""
        if self.metric is not None:
            better = self._best.improved(_value(metrics, self.metric))
            self._wanted |= better and step > 0

    def on_step_begin(self, trainer: Any, step: int) -> None:
        """Save the steps before this one, if they are wanted."""
        done = step - 1
        by_steps = self.every_steps and done > 0 and done % self.every_steps == 0
        minutes = (self._clock() - self._saved_at) / 60
        by_time = self.every_minutes and done > 0 and minutes >= self.every_minutes
        if self._wanted or by_steps or by_time:
            trainer.save_checkpoint()

    def on_checkpoint(self, trainer: Any, path: Any) -> None:
        """Begin to wait anew, whoever asked for it."""
        self._saved_at, self._wanted = self._clock(), False


class EarlyStoppingCallback(Callback):
    """Ends the training, saved and exported, when a metric stops getting better.

    After a resume the validations of before count too.

    Args:
        metric: a validation metric ("accuracy", "val:accuracy"), or with "train:" one
            of every step.
        patience: how many values in a row may fail to improve; the next one ends it.
        min_delta: what counts as better must be better by more than this.
        mode: "max" if a higher metric is better, "min" if a lower one.

    Raises:
        ConfigurationError: an argument is out of range; and while training, if there
            is no such metric.
    """

    def __init__(
        self,
        metric: str = "val:accuracy",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Mode = "max",
    ) -> None:
        """Check the arguments."""
        if patience < 0 or min_delta < 0:
            raise ConfigurationError(
                f"patience={patience} and min_delta={min_delta} must not be negative."
            )
        group, colon, name = metric.partition(":")
        if colon and group not in ("train", "val"):
            raise ConfigurationError(
                f"metric={metric!r} must begin with 'train:' or 'val:'."
            )
        self.metric, self.of_steps = name if colon else group, group == "train"
        self.patience = patience
        self._best = _Best(mode, min_delta)
        self._failed = 0

    def on_train_begin(self, trainer: Any) -> None:
        """Count what was validated before a resume."""
        if not self.of_steps:
            for row in trainer.state.validation_history:
                self._count(row.get(self.metric, math.nan))

    def on_step_end(self, trainer: Any, step: int, metrics: dict[str, float]) -> None:
        """Look at the metric of the step."""
        if self.of_steps:
            self._look(trainer, step, metrics)

    def on_validation_end(
        self, trainer: Any, step: int, metrics: dict[str, float]
    ) -> None:
        """Look at the metric of the validation."""
        if not self.of_steps:
            self._look(trainer, step, metrics)

    def _look(self, trainer: Any, step: int, metrics: Mapping[str, float]) -> None:
        self._count(_value(metrics, self.metric))
        if self._failed > self.patience:
            trainer.stop(
                f"{self.metric} has not improved on {number(self._best.value)} in "
                f"{self._failed} values up to step {step}"
            )

    def _count(self, value: float) -> None:
        self._failed = 0 if self._best.improved(value) else self._failed + 1


class _Best:
    """The best value so far; what is no number never is."""

    def __init__(self, mode: Mode, min_delta: float = 0.0) -> None:
        if mode not in ("max", "min"):
            raise ConfigurationError(f"mode={mode!r} must be 'max' or 'min'.")
        self._sign = 1.0 if mode == "max" else -1.0
        self._delta = min_delta
        self.value: float | None = None

    def improved(self, value: float) -> bool:
        """Whether a value is better, which it then is compared with later."""
        if math.isnan(value):
            return False
        if self.value is not None and (
            self._sign * (value - self.value) <= self._delta
        ):
            return False
        self.value = value
        return True


def _value(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise ConfigurationError(
            f"there is no metric {name!r}.{did_you_mean(name, metrics)} There are: "
            f"{', '.join(metrics)}."
        )
    return float(metrics[name])


def _write_line(head: str, metrics: Mapping[str, float], names: Sequence[str]) -> None:
    shown = [name for name in names or metrics if name in metrics]
    parts = [f"{name}={number(float(metrics[name]))}" for name in shown]
    log.info("%s: %s", head, " ".join(parts))


def _positive(name: str, value: Any) -> Any:
    if value <= 0:
        raise ConfigurationError(f"{name}={value} must be more than 0.")
    return value
