"""BaseTrainer: the loop, validation, saving and resuming, for every algorithm.

Knows no algorithm: a subclass builds its policy and says what one step is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_rl.config.base import BaseConfig, merge
from nemo_rl.config.keywords import build_mapping
from nemo_rl.config.master import OpenMasterConfig
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.trainers.callbacks import Callback, CallbackList
from nemo_rl.trainers.setup import TrainerSetup
from nemo_rl.trainers.state import TrainResult, TrainState
from nemo_rl.trainers.summary import run_facts, run_summary
from nemo_rl.trainers.validation import ValidationResult
from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import ConfigurationError, Hung, WorkerError
from nemo_rl.utils.publish import publish_folder
from nemo_rl.utils.timer import Timer


class BaseTrainer(TrainerSetup):
    """The loop that every algorithm shares.

    A subclass defines ``_train_step`` and, to validate, ``_evaluate``. It may set the
    class attributes of ``TrainerSetup``, and extend ``_setup_policy``.

    Args:
        config: a recipe as a mapping or as the algorithm's configuration object.
        policy: a policy that exists already, trained in place of one built from the
            recipe, and not shut down at the end.

    Attributes:
        policy: what is trained (after set-up).
        state: counters that a resume continues from.
        run_dir: folder that a relative ``logger.log_dir`` and the files PREEMPT, SAVE
            and STOP belong to; None for the current folder and no files.

    Raises:
        ConfigurationError: the recipe is wrong; every problem is listed.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Name the algorithm after the class, unless the class does."""
        super().__init_subclass__(**kwargs)
        if not cls.algorithm:
            cls.algorithm = cls.__name__.removesuffix("Trainer").lower()

    def __init__(
        self,
        config: Mapping[str, Any] | BaseConfig,
        *,
        policy: PolicyInterface | None = None,
    ) -> None:
        if not isinstance(config, self.config_class):
            config = self.config_class.from_mapping(config)
        self.config: Any = config
        self.section = self.config.algorithm_section
        self.state = TrainState()
        self.timer = Timer()
        self.run_dir: Path | None = None
        self._given_policy = policy
        self._stop_requested: str | None = None
        self._last_validation: ValidationResult | None = None
        self._first_validation: ValidationResult | None = None
        self._checkpoint_path: Path | None = None
        self._phase = ""
        """The one that runs, or that an error ended."""

    @classmethod
    def from_pretrained(cls, model: str, **kwargs: Any) -> BaseTrainer:
        """A trainer for a model, from keywords.

        Args:
            model: folder, hub name or packaged model.
            **kwargs: keywords of the recipe, as for ``nemo_rl.train``.
        """
        config = cls._build_config_from_pretrained(model, **kwargs)
        if cls.config_class is OpenMasterConfig:
            # A subclass may have set its whole section: the loop's keywords stay.
            given = build_mapping(cls.config_class, model, cls.algorithm, **kwargs)
            config = merge(given, config)
        return cls(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BaseTrainer:
        """A trainer from any mapping: a dict, an OmegaConf object, a parsed YAML."""
        return cls(config)

    @classmethod
    def _build_config_from_pretrained(cls, model: str, **kwargs: Any) -> Any:
        return build_mapping(cls.config_class, model, cls.algorithm, **kwargs)

    def fit(
        self,
        dataset: Any = None,
        reward_fn: Callable[..., Any] | None = None,
        callbacks: Iterable[Callback] | None = None,
        val_dataset: Any = None,
    ) -> TrainResult:
        """Train to the end, to the time limit, or until asked to stop.

        Args:
            dataset: name, list of rows, file, ``datasets.Dataset`` or ``DataModule``;
                None for ``data.dataset_name``.
            reward_fn: ``(prompt, response) -> float`` or its batched form; None for
                the ``env`` section or the data set's own.
            callbacks: hooks, called in order.
            val_dataset: as ``dataset``, for validation.

        Raises:
            NemoRLError: wrong input (before anything is written), or a failed step.
        """
        self.callbacks = CallbackList(callbacks)
        try:
            self.setup(dataset, reward_fn, val_dataset)
            return self._training_loop()
        except Hung:
            self._save_after_hang()
            raise
        finally:
            self._teardown()

    def evaluate(
        self, dataset: Any = None, reward_fn: Any = None, val_dataset: Any = None
    ) -> dict[str, float]:
        """Validate without training: the newest checkpoint, or the policy as it is.

        Args:
            dataset: as for ``fit``.
            reward_fn: as for ``fit``.
            val_dataset: as for ``fit``.

        Raises:
            ConfigurationError: there is nothing to validate on.
        """
        try:
            self.setup(dataset, reward_fn, val_dataset)
            if not self.data.has_validation:
                raise ConfigurationError(
                    "there is nothing to evaluate on: set data.val_dataset_name or "
                    "pass val_dataset."
                )
            return dict(self._run_validation().metrics)
        finally:
            self._teardown()

    def _train_step(self, batch: Any) -> dict[str, float]:
        raise NotImplementedError(f"{type(self).__name__} defines no _train_step")

    def _training_loop(self) -> TrainResult:
        self._started = time.monotonic()
        self._history: list[dict[str, float]] = []
        self.console.start(
            f"nemo_rl {self.algorithm}", self.total_steps, run_facts(self)
        )
        if self._resumed is not None:
            self.console.message(
                f"resumed from {self._resumed.path} after step {self.state.step}"
            )
        if self.state.step >= self.total_steps:
            self.console.message(
                f"nothing left to train: {self.state.step} of {self.total_steps} steps "
                f"are done. Raise {self.algorithm}.max_num_steps to go on, or choose "
                "another checkpointing.checkpoint_dir to start anew."
            )
        if limits := self.deadline.describe():
            self.console.message(limits)
        self.callbacks.on_train_begin(self)
        if self.state.step == 0 and self.validation.due(0):
            self._validate()
        status = "completed"
        self._batches = self._open_batches()
        while self.state.step < self.total_steps:
            self._save_if_asked()
            status = self._stop_reason()
            if status != "completed":
                break
            batch = next(self._batches, None)
            if batch is None:
                self.console.message(f"the data ended after step {self.state.step}")
                break
            self._one_step(batch)
        return self._finish(status)

    def _open_batches(self) -> Iterator[Any]:
        """What each step begins with, from where the state stands."""
        return self.data.batches(getattr(self.section, self.steps_key))

    def _data_state(self) -> dict[str, Any]:
        """Where the data stands after the step that has just ended."""
        return self.data.state_dict()

    def stop(self, reason: str) -> None:
        """End the training after the step that runs, with status "stopped".

        Args:
            reason: shown to the user.
        """
        self._stop_requested = reason

    def _stop_reason(self) -> str:
        if self._stop_requested is not None:
            self.console.message(f"stopping: {self._stop_requested}")
            return "stopped"
        if self.touch_files.stop:
            self.console.message(f"stopping: file STOP, after step {self.state.step}")
            self.touch_files.stopped()
            return "stopped"
        if self.preemption.requested:
            self.console.message(f"stopping: {self.preemption.reason}")
            return "preempted"
        if self._out_of_time():
            return "preempted"
        limit = self.section.max_time_s
        if limit is not None and time.monotonic() - self._started >= limit:
            self.console.message(f"stopping: max_time_s={limit:g} is over")
            return "time_limit"
        return "completed"

    def _out_of_time(self) -> bool:
        following = self.state.step + 1
        last = following >= self.total_steps
        due = self.validation.due(following, last=last)
        reason = self.deadline.reason(validation=due)
        if reason and not self._history:
            reason += ". No step was made in this start: raise the time limit"
        if reason:
            self.console.message(f"stopping, another step does not fit: {reason}")
        return bool(reason)

    def _save_if_asked(self) -> None:
        if not self.touch_files.save:
            return
        step = self.state.step
        if self.checkpoints is None:
            self.console.message("file SAVE: checkpointing.enabled is false")
        elif step == 0:
            self.console.message("file SAVE: there is no step to save yet")
        else:
            self.console.message(f"file SAVE: saving step {step}, then going on")
            self.save_checkpoint()
        self.touch_files.saved()

    def _one_step(self, batch: Any) -> None:
        step = self.state.step + 1
        if self.state.step_in_epoch == 0:
            self._on_epoch_begin()
        self.callbacks.on_step_begin(self, step)
        started = time.perf_counter()
        metrics = self._train_step(batch)
        seconds = time.perf_counter() - started
        self.deadline.took("step", seconds)
        self.state.finish_step(
            samples=int(
                metrics.get("num_completions", metrics.get("num_samples", batch.size))
            ),
            valid_tokens=int(metrics.get("global_valid_tokens", 0)),
            seconds=seconds,
        )
        self.state.data = self._data_state()
        metrics |= self.timer.metrics(reset=True)
        metrics["timing/step_s"] = seconds
        metrics["tokens_per_s"] = metrics.get("total_tokens", 0.0) / seconds
        metrics["epoch"] = self.state.epoch
        self.callbacks.on_step_end(self, step, metrics)
        self.logger.log_metrics(metrics, step, prefix="train")
        self.console.update(step, metrics)
        self._history.append({"step": step, **metrics})
        if self.state.step_in_epoch >= self.steps_per_epoch:
            self._on_epoch_end(metrics)
        last = step >= self.total_steps
        if self.validation.due(step, last=last):
            self._validate()
        if last or step % self.config.checkpointing.save_period == 0:
            self.save_checkpoint()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the step and show that it runs."""
        self.console.phase(name)
        self._phase = name
        with self.timer.time(name), pulse.doing(name):
            yield
        self._phase = ""

    def _on_epoch_begin(self) -> None:
        self.callbacks.on_epoch_begin(self, self.state.epoch)

    def _on_epoch_end(self, metrics: dict[str, float]) -> None:
        self.callbacks.on_epoch_end(self, self.state.epoch, metrics)
        self.state.finish_epoch()

    def _validate(self) -> dict[str, float]:
        """Validate now; logs, shows and remembers the result."""
        step, checkpointing = self.state.step, self.config.checkpointing
        started = time.perf_counter()
        with self.phase("validation"):
            result = self._run_validation()
        metrics = dict(result.metrics)
        name = (checkpointing.metric_name or "").removeprefix("val:")
        self.state.record_validation(
            metrics, metric=name, higher_is_better=checkpointing.higher_is_better
        )
        metrics["timing/validation_s"] = time.perf_counter() - started
        self.deadline.took("validation", metrics["timing/validation_s"])
        self.timer.reset()
        if self._first_validation is None:
            self._first_validation = result
        self._last_validation = result
        self.callbacks.on_validation_end(self, step, metrics)
        self.logger.log_metrics(metrics, step, prefix="val")
        self.logger.log_samples(result.samples, step)
        self.console.validation(step, metrics)
        return metrics

    def _run_validation(self) -> ValidationResult:
        return self.validation.run()

    def _checkpoint_metrics(self) -> dict[str, float]:
        metrics = {
            f"train:{key}": value
            for key, value in (self._history[-1] if self._history else {}).items()
        }
        history = self.state.validation_history
        if history and history[-1]["step"] == self.state.step:
            metrics |= {f"val:{key}": value for key, value in history[-1].items()}
        return metrics

    def save_checkpoint(self) -> None:
        """Save now, unless checkpoints are off or this step is saved already."""
        newest = f"step_{self.state.step:06d}"
        saved = self._checkpoint_path
        if self.checkpoints is None or (saved is not None and saved.name == newest):
            return
        step, config = self.state.step, self.config.checkpointing
        started = time.perf_counter()
        with (
            self.phase("checkpoint"),
            self.checkpoints.writing(step, metrics=self._checkpoint_metrics()) as path,
        ):
            (path / "policy").mkdir()
            self.policy.save_checkpoint(
                path / "policy", with_optimizer=config.save_optimizer
            )
            if config.save_consolidated:
                (path / "hf").mkdir()
                self.policy.save_hf(path / "hf")
            self._save_more(path)
            so_far = time.perf_counter() - started
            self.state.seconds = self.deadline.learned(saving_s=so_far)
            self.state.save(path / "trainer_state.json")
        self.deadline.took("save", time.perf_counter() - started)
        self._checkpoint_path = self.checkpoints.directory / newest
        self.callbacks.on_checkpoint(self, self._checkpoint_path)
        self.console.message(f"saved {self._checkpoint_path}")

    def _save_after_hang(self) -> None:
        """Save the last complete step, where its weights are still whole.

        Whatever hung in a worker ended the workers; what hung beside them (a reward, a
        tool, the data) did not.
        """
        pulse.acknowledge()
        if self._phase in ("training", "checkpoint") or self.state.step == 0:
            return
        try:
            self.save_checkpoint()
        except WorkerError as error:
            self.console.message(f"nothing could be saved: {error}")

    def _save_more(self, path: Path) -> None:
        """Write what else this algorithm resumes from into a checkpoint's folder."""

    def _finish(self, status: str) -> TrainResult:
        if self.state.step > 0:
            self.save_checkpoint()
        export = None
        if status in ("completed", "stopped"):
            export = self._export_hf()
        result = TrainResult(
            steps=self.state.step,
            metrics=self._history[-1] if self._history else {},
            history=self._history,
            validation_history=self.state.validation_history,
            status=status,
            checkpoint_path=self._checkpoint_path,
            log_dir=self.logger.log_dir,
            tensorboard_dir=self.logger.tensorboard_dir,
            rollouts_path=self._rollouts_path(),
            hf_export_path=export,
        )
        self.callbacks.on_train_end(self, result)
        self.console.finish(
            run_summary(
                result,
                self._first_validation,
                self._last_validation,
                elapsed_s=time.monotonic() - self._started,
            )
        )
        return result

    def _rollouts_path(self) -> Path | None:
        return None

    def _export_hf(self) -> Path | None:
        """Write ``checkpoint_dir/hf``, complete or not at all."""
        if self.checkpoints is None or not self.config.checkpointing.export_hf:
            return None
        return publish_folder(self.checkpoints.directory / "hf", self.policy.save_hf)
