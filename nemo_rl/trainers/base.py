"""BaseTrainer: set-up, the loop, validation, saving and resuming, for every algorithm.

Knows no algorithm: a subclass builds its policy and says what one step is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from nemo_rl.config.base import BaseConfig, merge
from nemo_rl.config.keywords import build_mapping
from nemo_rl.config.master import MasterConfig, OpenMasterConfig
from nemo_rl.data.module import DataModule
from nemo_rl.data.tokenizer import load_tokenizer
from nemo_rl.distributed.interfaces import VirtualCluster
from nemo_rl.environments.factory import make_environment
from nemo_rl.environments.interfaces import EnvironmentInterface
from nemo_rl.infra.assets import resolve_model
from nemo_rl.infra.checkpointing import CheckpointManager
from nemo_rl.infra.console import Console, make_console
from nemo_rl.infra.fingerprint import model_fingerprint
from nemo_rl.infra.gpu_monitor import GpuMonitor
from nemo_rl.infra.logging import LoggerFacade, setup_logger
from nemo_rl.infra.preemption import PreemptionFlag
from nemo_rl.infra.resources import make_cluster, release_cluster
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.models.policy.lm_policy import Policy
from nemo_rl.trainers.callbacks import Callback, CallbackList
from nemo_rl.trainers.state import TrainResult, TrainState
from nemo_rl.trainers.summary import run_facts, run_summary
from nemo_rl.trainers.validation import ValidationResult, ValidationRunner
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.publish import publish_folder
from nemo_rl.utils.timer import Timer

log = logging.getLogger(__name__)


class BaseTrainer:
    """The loop that every algorithm shares.

    A subclass defines ``_train_step`` and, to validate, ``_evaluate``. It may set
    ``config_class`` (any sections, unless it does), ``algorithm`` (its class name
    without "Trainer") and ``needs_reward``, and extend ``_setup_policy``.

    Args:
        config: a recipe as a mapping or as the algorithm's configuration object.
        policy: a policy that exists already, trained in place of one built from the
            recipe, and not shut down at the end.

    Attributes:
        policy: what is trained (after set-up).
        state: counters that a resume continues from.
        run_dir: folder that a relative ``logger.log_dir`` and the PREEMPT file belong
            to; None for the current folder.

    Raises:
        ConfigurationError: the recipe is wrong; every problem is listed.
    """

    algorithm: ClassVar[str] = ""
    config_class: ClassVar[type[MasterConfig]] = OpenMasterConfig
    steps_key: ClassVar[str] = "batch_size"
    needs_reward: ClassVar[bool] = False

    policy: Any
    tokenizer: Any
    cluster: VirtualCluster
    environment: EnvironmentInterface | Any

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
        self._last_validation: ValidationResult | None = None
        self._first_validation: ValidationResult | None = None
        self._checkpoint_path: Path | None = None

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
            return dict(self.validation.run().metrics)
        finally:
            self._teardown()

    def setup(
        self, dataset: Any = None, reward_fn: Any = None, val_dataset: Any = None
    ) -> None:
        """Bring everything up; what needs no worker is checked first."""
        config = self.config
        self._teardown_steps: list[Callable[[], None]] = []
        self.model_folder = resolve_model(config.policy.model_name)
        source = config.policy.tokenizer
        self.tokenizer = load_tokenizer(
            resolve_model(source.name) if source.name else self.model_folder,
            chat_template=source.chat_template,
        )
        self._setup_data(dataset, reward_fn, val_dataset)
        self._setup_checkpointing()
        self._setup_logger()
        self._setup_cluster()
        with self.timer.time("setup"):
            self._setup_policy()
            if self._given_policy is None:
                self._teardown_steps.append(self.policy.shutdown)
            if self._resumed is not None:
                self.policy.load_checkpoint(self._resumed.path / "policy")

    def _setup_data(self, dataset: Any, reward_fn: Any, val_dataset: Any) -> None:
        config = self.config
        self.data = DataModule.create(
            dataset,
            self.tokenizer,
            config.data,
            seed=self.section.seed,
            max_prompt_length=config.max_prompt_length,
            val_dataset=val_dataset,
            search_dir=config.recipe_dir,
        )
        size = getattr(self.section, self.steps_key)
        self.steps_per_epoch = self.data.steps_per_epoch(size)
        self.total_steps = min(
            self.section.max_num_steps,
            self.section.max_num_epochs * self.steps_per_epoch,
        )
        scored = reward_fn is not None or config.env.reward_fn or config.env.chosen
        self.environment = None
        if scored or self.needs_reward:
            self.environment = make_environment(
                config.env,
                reward_fn=reward_fn,
                default=self.data.default_environment,
                search_dir=config.recipe_dir,
            )
            # A user's own need not be a subclass of ours.
            end = getattr(self.environment, "shutdown", None)
            self._teardown_steps += [end] if end is not None else []
        self.validation = ValidationRunner(
            self._evaluate,
            lambda: self.data.validation_batches(
                self.section.max_val_samples, self.section.val_batch_size
            ),
            period=self.section.val_period if self.data.has_validation else 0,
            at_start=self.section.val_at_start and self.data.has_validation,
            at_end=self.section.val_at_end and self.data.has_validation,
        )

    def _setup_checkpointing(self) -> None:
        self._resumed = None
        self.checkpoints = None
        if not self.config.checkpointing.enabled:
            return
        self.checkpoints = CheckpointManager(
            self.config.checkpointing,
            fingerprint={
                "algorithm": self.algorithm,
                **model_fingerprint(self.model_folder),
            },
        )
        self._teardown_steps.append(self.checkpoints.close)
        self.checkpoints.check_writable()
        self._resumed = self.checkpoints.newest()
        if self._resumed is not None:
            self.state = TrainState.load(self._resumed.path / "trainer_state.json")
            self.data.load_state_dict(self.state.data)
            self._checkpoint_path = self._resumed.path

    def _setup_logger(self) -> None:
        resume_step = self.state.step or None
        self.logger: LoggerFacade = setup_logger(
            self.config.logger,
            run_config=self.config.to_dict(),
            run_dir=self.run_dir,
            resume_step=resume_step,
        )
        self._teardown_steps.append(self.logger.close)
        self.console: Console = make_console(self.config.logger.console)
        self._teardown_steps.append(self.console.stop)
        section = self.config.logger
        if section.monitor_gpus and self.config.cluster.use_gpus:
            intervals = section.gpu_monitoring
            monitor = GpuMonitor(
                self.logger.log_metrics,
                lambda: self.state.step,
                collection_interval=intervals.collection_interval,
                flush_interval=intervals.flush_interval,
            )
            monitor.start()
            self._teardown_steps.append(monitor.stop)

    def _setup_cluster(self) -> None:
        if self._given_policy is None:
            self.cluster = make_cluster(self.config.cluster)
            self._teardown_steps.append(lambda: release_cluster(self.cluster))
        # After Ray is connected: Ray installs a handler of its own for SIGTERM.
        self.preemption = PreemptionFlag(
            self.run_dir,
            must_save_by_s=self.config.checkpointing.must_save_by_s,
        ).install()
        self._teardown_steps.append(self.preemption.uninstall)

    def _setup_policy(self) -> None:
        self.policy = self._make_policy()

    def _make_policy(self, *, keep_reference: bool = False) -> PolicyInterface:
        """The policy that was given, or one on this run's cluster."""
        if self._given_policy is not None:
            return self._given_policy
        config = self.config
        threads = config.cluster.num_cpus_per_worker
        return Policy(
            self.cluster,
            config.policy,
            self.tokenizer,
            keep_reference=keep_reference,
            seed=self.section.seed,
            threads=None if config.cluster.use_gpus else threads,
        )

    def _train_step(self, batch: Any) -> dict[str, float]:
        raise NotImplementedError(f"{type(self).__name__} defines no _train_step")

    def _evaluate(self, batch: Any) -> list[dict[str, Any]]:
        raise NotImplementedError(f"{type(self).__name__} defines no _evaluate")

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
        self.callbacks.on_train_begin(self)
        if self.state.step == 0 and self.validation.due(0):
            self._validate()
        status = "completed"
        batches = self.data.batches(getattr(self.section, self.steps_key))
        while self.state.step < self.total_steps:
            status = self._stop_reason()
            if status != "completed":
                break
            self._one_step(next(batches))
        return self._finish(status)

    def _stop_reason(self) -> str:
        if self.preemption.requested:
            self.console.message(f"stopping: {self.preemption.reason}")
            return "preempted"
        limit = self.section.max_time_s
        if limit is not None and time.monotonic() - self._started >= limit:
            self.console.message(f"stopping: max_time_s={limit:g} is over")
            return "time_limit"
        return "completed"

    def _one_step(self, batch: Any) -> None:
        step = self.state.step + 1
        if self.state.step_in_epoch == 0:
            self._on_epoch_begin()
        self.callbacks.on_step_begin(self, step)
        started = time.perf_counter()
        metrics = self._train_step(batch)
        seconds = time.perf_counter() - started
        self.state.finish_step(
            samples=int(metrics.get("num_completions", batch.size)),
            valid_tokens=int(metrics.get("global_valid_tokens", 0)),
            seconds=seconds,
        )
        self.state.data = self.data.state_dict()
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
            self._save_checkpoint()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the step and show that it runs."""
        self.console.phase(name)
        with self.timer.time(name):
            yield

    def _on_epoch_begin(self) -> None:
        self.callbacks.on_epoch_begin(self, self.state.epoch)

    def _on_epoch_end(self, metrics: dict[str, float]) -> None:
        self.callbacks.on_epoch_end(self, self.state.epoch, metrics)
        self.state.finish_epoch()

    def _validate(self) -> dict[str, float]:
        """Validate now; logs, shows and remembers the result."""
        self.console.phase("validation")
        step, checkpointing = self.state.step, self.config.checkpointing
        started = time.perf_counter()
        result = self.validation.run()
        metrics = dict(result.metrics)
        name = (checkpointing.metric_name or "").removeprefix("val:")
        self.state.record_validation(
            metrics, metric=name, higher_is_better=checkpointing.higher_is_better
        )
        metrics["timing/validation_s"] = time.perf_counter() - started
        self.timer.reset()
        if self._first_validation is None:
            self._first_validation = result
        self._last_validation = result
        self.callbacks.on_validation_end(self, step, metrics)
        self.logger.log_metrics(metrics, step, prefix="val")
        self.logger.log_samples(result.samples, step)
        self.console.validation(step, metrics)
        return metrics

    def _checkpoint_metrics(self) -> dict[str, float]:
        metrics = {
            f"train:{key}": value
            for key, value in (self._history[-1] if self._history else {}).items()
        }
        history = self.state.validation_history
        if history and history[-1]["step"] == self.state.step:
            metrics |= {f"val:{key}": value for key, value in history[-1].items()}
        return metrics

    def _save_checkpoint(self) -> None:
        if self.checkpoints is None:
            return
        step, config = self.state.step, self.config.checkpointing
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
            self.state.save(path / "trainer_state.json")
        self._checkpoint_path = self.checkpoints.directory / f"step_{step:06d}"
        self.callbacks.on_checkpoint(self, self._checkpoint_path)
        self.console.message(f"saved {self._checkpoint_path}")

    def _finish(self, status: str) -> TrainResult:
        saved = self._checkpoint_path
        newest = f"step_{self.state.step:06d}"
        if self.state.step > 0 and (saved is None or saved.name != newest):
            self._save_checkpoint()
        export = None
        if status == "completed":
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

    def _teardown(self) -> None:
        steps, self._teardown_steps = getattr(self, "_teardown_steps", []), []
        for step in reversed(steps):
            step()
