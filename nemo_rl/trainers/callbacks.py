"""Callback: hooks into the training loop for user code; CallbackList calls them all.

Knows no trainer: hooks receive whichever trainer runs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError, NemoRLError, TrainingError
from nemo_rl.utils.suggest import did_you_mean


class Callback:
    """Base class of user callbacks: override the hooks you need.

    Steps count from 1, epochs from 0. Metrics are the ones that are logged; a hook
    may add to them. Several callbacks are called in the order in which they are given.
    The order of the hooks in a run::

        on_train_begin
        on_validation_end             with val_at_start, at step 0
        per step:
            on_epoch_begin            before the first step of an epoch
            on_step_begin
            on_step_end
            on_epoch_end              after the last step of an epoch
            on_validation_end         if one is due
            on_checkpoint             if one is due
        on_checkpoint                 if the last step is not saved yet
        on_train_end                  not after an error

    A hook may call ``trainer.stop(reason)``, which ends the run after the step, and
    ``trainer.save_checkpoint()``; the latter between steps, as in `on_step_begin`.

    Example::

        class Report(Callback):
            def on_step_end(self, trainer, step, metrics):
                print(step, metrics["reward"])

        trainer.fit(data, callbacks=[Report()])
    """

    def on_train_begin(self, trainer: Any) -> None:
        """After set-up and resume, before the first step."""

    def on_train_end(self, trainer: Any, result: Any) -> None:
        """After the last step, with the TrainResult."""

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        """Before the first step of an epoch."""

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """After an epoch, with the metrics of its last step."""

    def on_step_begin(self, trainer: Any, step: int) -> None:
        """Before a training step."""

    def on_step_end(self, trainer: Any, step: int, metrics: dict[str, float]) -> None:
        """After a training step, before its metrics are logged."""

    def on_validation_end(
        self, trainer: Any, step: int, metrics: dict[str, float]
    ) -> None:
        """After a validation at `step` completed training steps."""

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        """After a checkpoint was committed to `path`."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


class CallbackList(Callback):
    """Calls each hook of each callback in order.

    Args:
        callbacks: instances of Callback.

    Raises:
        ConfigurationError: something is no Callback instance, or defines an `on_`
            method that no hook calls (a misspelt one would never run).
    """

    def __init__(self, callbacks: Iterable[Callback] | None = None) -> None:
        """Check the callbacks; nothing is called yet."""
        self._callbacks = [_checked(callback) for callback in callbacks or ()]

    def __len__(self) -> int:
        """Number of callbacks."""
        return len(self._callbacks)

    def on_train_begin(self, trainer: Any) -> None:
        """Forward to every callback."""
        self._call("on_train_begin", trainer)

    def on_train_end(self, trainer: Any, result: Any) -> None:
        """Forward to every callback."""
        self._call("on_train_end", trainer, result)

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        """Forward to every callback."""
        self._call("on_epoch_begin", trainer, epoch)

    def on_epoch_end(self, trainer: Any, epoch: int, metrics: dict[str, float]) -> None:
        """Forward to every callback."""
        self._call("on_epoch_end", trainer, epoch, metrics)

    def on_step_begin(self, trainer: Any, step: int) -> None:
        """Forward to every callback."""
        self._call("on_step_begin", trainer, step)

    def on_step_end(self, trainer: Any, step: int, metrics: dict[str, float]) -> None:
        """Forward to every callback."""
        self._call("on_step_end", trainer, step, metrics)

    def on_validation_end(
        self, trainer: Any, step: int, metrics: dict[str, float]
    ) -> None:
        """Forward to every callback."""
        self._call("on_validation_end", trainer, step, metrics)

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        """Forward to every callback."""
        self._call("on_checkpoint", trainer, path)

    def _call(self, hook: str, *args: Any) -> None:
        for callback in self._callbacks:
            with _Naming(callback, hook):
                getattr(callback, hook)(*args)


class _Naming:
    """Turns an error of a callback into one that says which callback it was.

    Errors of nemo_rl keep their class and exit code; Ctrl-C passes untouched.
    """

    def __init__(self, callback: Callback, hook: str) -> None:
        self._where = f"{type(callback).__qualname__}.{hook}"

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, NemoRLError):
            error.add_note(f"raised in callback {self._where}")
        elif isinstance(error, Exception):
            raise TrainingError(
                f"callback {self._where} failed: {type(error).__name__}: {error}"
            ) from error


def _checked(callback: Any) -> Callback:
    if isinstance(callback, type) and issubclass(callback, Callback):
        raise ConfigurationError(
            f"callbacks needs instances: use {callback.__name__}() instead of "
            f"{callback.__name__}."
        )
    if not isinstance(callback, Callback):
        raise ConfigurationError(
            f"callbacks needs instances of nemo_rl.trainers.callbacks.Callback, got "
            f"{callback!r}."
        )
    for name in dir(callback):
        if name.startswith("on_") and name not in HOOKS:
            raise ConfigurationError(
                f"{type(callback).__qualname__}.{name} is not a hook."
                f"{did_you_mean(name, HOOKS)} Hooks: {', '.join(HOOKS)}."
            )
    return callback
