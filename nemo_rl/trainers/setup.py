"""TrainerSetup: what a run needs, brought up in the order in which it can fail early.

Knows no loop: ``trainers/base.py`` has it. ``_teardown`` undoes ``setup`` in reverse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from nemo_rl.config.master import MasterConfig, OpenMasterConfig
from nemo_rl.data.encoding import Encoder
from nemo_rl.data.module import DataModule
from nemo_rl.data.prompts import PromptEncoder
from nemo_rl.data.tokenizer import load_tokenizer
from nemo_rl.distributed.interfaces import VirtualCluster
from nemo_rl.environments.factory import make_environment
from nemo_rl.environments.interfaces import EnvironmentInterface
from nemo_rl.infra.assets import resolve_model
from nemo_rl.infra.checkpointing import CheckpointManager
from nemo_rl.infra.console import Console, make_console
from nemo_rl.infra.deadline import Deadline, first_save_s
from nemo_rl.infra.fingerprint import model_fingerprint
from nemo_rl.infra.logging import LoggerFacade, setup_logger
from nemo_rl.infra.monitor import (
    Monitor,
    SystemReading,
    sample_nvidia_smi,
    worker_pids,
)
from nemo_rl.infra.preemption import PreemptionFlag
from nemo_rl.infra.resources import ResourceManager
from nemo_rl.infra.touch_files import TouchFiles
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.models.policy.lm_policy import Policy
from nemo_rl.trainers.state import TrainState
from nemo_rl.trainers.validation import ValidationRunner, completion_metrics
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.timer import Timer


class TrainerSetup:
    """The parts of a trainer, and how they come and go.

    Attributes:
        algorithm: its name; the class's without "Trainer" unless set.
        config_class: of its recipe.
        encoder: reads rows and makes batches.
        steps_key: field of its section with the rows of the data set per step.
        needs_reward: True: something must score; False: nothing may; None: as the
            recipe says.
    """

    algorithm: ClassVar[str] = ""
    config_class: ClassVar[type[MasterConfig]] = OpenMasterConfig
    encoder: ClassVar[type[Encoder]] = PromptEncoder
    steps_key: ClassVar[str] = "batch_size"
    needs_reward: ClassVar[bool | None] = None

    config: Any
    section: Any
    policy: Any
    tokenizer: Any
    cluster: VirtualCluster
    environment: EnvironmentInterface | Any
    state: TrainState
    timer: Timer
    run_dir: Path | None
    _given_policy: PolicyInterface | None
    _checkpoint_path: Path | None

    def setup(
        self, dataset: Any = None, reward_fn: Any = None, val_dataset: Any = None
    ) -> None:
        """Bring everything up; what needs no worker is checked first."""
        began = time.time()
        self.setup_inputs(dataset, reward_fn, val_dataset)
        self._setup_checkpointing()
        self._setup_deadline(began)
        self._setup_logger()
        self._setup_cluster()
        with self.timer.time("setup"):
            self._setup_policy()
            if self._given_policy is None:
                self._teardown_steps.append(self.policy.shutdown)
            if self._resumed is not None:
                self.policy.load_checkpoint(self._resumed.path / "policy")
                self.policy.version = self.state.step

    def setup_inputs(
        self, dataset: Any = None, reward_fn: Any = None, val_dataset: Any = None
    ) -> None:
        """Bring up what goes in: model folder, tokenizer, rows, reward.

        It writes nothing and needs no worker; end it with ``teardown``.
        """
        self._teardown_steps: list[Callable[[], None]] = []
        policy = self.config.policy
        self.model_folder = resolve_model(policy.model_name)
        source = policy.tokenizer
        self.tokenizer = load_tokenizer(
            resolve_model(source.name) if source.name else self.model_folder,
            chat_template=source.chat_template,
        )
        self._setup_data(dataset, reward_fn, val_dataset)

    def teardown(self) -> None:
        """End what ``setup_inputs`` brought up."""
        self._teardown()

    def _setup_data(self, dataset: Any, reward_fn: Any, val_dataset: Any) -> None:
        config = self.config
        self.data = DataModule.create(
            dataset,
            self.tokenizer,
            config.data,
            seed=self.section.seed,
            max_length=config.max_row_length,
            val_dataset=val_dataset,
            search_dir=config.recipe_dir,
            encoder=self.encoder,
        )
        size = getattr(self.section, self.steps_key)
        self.steps_per_epoch = self.data.steps_per_epoch(size)
        self.total_steps = min(
            self.section.max_num_steps,
            self.section.max_num_epochs * self.steps_per_epoch,
        )
        self._setup_environment(reward_fn)
        self.validation = ValidationRunner(
            self._evaluate,
            lambda: self.data.validation_batches(
                self.section.max_val_samples, self.section.val_batch_size
            ),
            period=self.section.val_period if self.data.has_validation else 0,
            at_start=self.section.val_at_start and self.data.has_validation,
            at_end=self.section.val_at_end and self.data.has_validation,
            summarise=self._summarise,
        )

    def _setup_environment(self, reward_fn: Any, *, needed: bool = False) -> None:
        env = self.config.env
        scored = reward_fn is not None or env.reward_fn or env.chosen
        self.environment = None
        if scored and self.needs_reward is False:
            raise ConfigurationError(
                f"{self.algorithm} trains on given answers and scores nothing: leave "
                "reward_fn (env.reward_fn, env.name) out, or train with 'grpo'."
            )
        if scored or needed or self.needs_reward:
            self.environment = make_environment(
                env,
                reward_fn=reward_fn,
                default=self.data.default_environment,
                search_dir=self.config.recipe_dir,
            )
            # A user's own need not be a subclass of ours.
            end = getattr(self.environment, "shutdown", None)
            self._teardown_steps += [end] if end is not None else []

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
        self._setup_monitor()

    def _setup_monitor(self) -> None:
        section = self.config.logger
        readings: list[Callable[[], dict[str, float]]] = []
        if section.monitor_gpus and self.config.cluster.use_gpus:
            readings.append(sample_nvidia_smi)
        if section.monitor_system:
            # The policy is made later.
            workers = partial(getattr, self, "policy", None)
            readings.append(SystemReading(lambda: worker_pids(workers())))
        if not readings:
            return
        intervals = section.gpu_monitoring
        monitor = Monitor(
            self.logger.log_metrics,
            lambda: self.state.step,
            readings,
            collection_interval=intervals.collection_interval,
            flush_interval=intervals.flush_interval,
        )
        monitor.start()
        self._teardown_steps.append(monitor.stop)

    def _setup_cluster(self) -> None:
        if self._given_policy is None:
            resources = ResourceManager(self.config.cluster, self.config.layout)
            self.cluster = resources.allocate()
            self._teardown_steps.append(resources.release)
        # After Ray is connected: Ray installs a handler of its own for SIGTERM.
        self.preemption = PreemptionFlag(self.run_dir).install()
        self._teardown_steps.append(self.preemption.uninstall)

    def _setup_deadline(self, began: float) -> None:
        section = self.config.checkpointing
        allowed = section.must_save_by_s
        self.deadline = Deadline(
            margin_s=section.end_margin_s,
            first_save_s=first_save_s(
                self.model_folder, with_optimizer=section.save_optimizer
            ),
            must_save_by=None if allowed is None else began + allowed,
            learned=self.state.seconds,
        )
        self.touch_files = TouchFiles(self.run_dir)

    def _setup_policy(self) -> None:
        self.policy = self._make_policy()

    def _make_policy(
        self, *, keep_reference: bool = False, teacher: str | None = None
    ) -> PolicyInterface:
        """The policy that was given, or one on this run's cluster.

        Args:
            keep_reference: keep the initial weights for ``get_reference_logprobs``.
            teacher: folder or name of a model to learn from.
        """
        config = self.config
        if self._given_policy is not None:
            self._check_temperature(self._given_policy)
            return self._given_policy
        policy = config.policy
        if not config.samples:
            # Likelihoods are the model's own, whatever sampling would do.
            # And nothing generates.
            generation = {
                "temperature": 1.0,
                "backend": None,
                "colocated": {"enabled": True},
            }
            policy = policy.merged({"generation": generation})
        threads = config.cluster.num_cpus_per_worker
        return Policy(
            self.cluster,
            policy,
            self.tokenizer,
            keep_reference=keep_reference,
            teacher=teacher,
            seed=self.section.seed,
            threads=None if config.cluster.use_gpus else threads,
        )

    def _check_temperature(self, policy: PolicyInterface) -> None:
        generation = getattr(getattr(policy, "config", None), "generation", None)
        temperature = getattr(generation, "temperature", 1.0)
        if not self.config.samples and temperature not in (0.0, 1.0):
            raise ConfigurationError(
                f"the policy scores at generation.temperature={temperature}, and "
                f"{self.algorithm} learns likelihoods at 1.0: make it with "
                "generation.temperature=1.0."
            )

    def _evaluate(self, batch: Any) -> list[dict[str, Any]]:
        raise NotImplementedError(f"{type(self).__name__} defines no _evaluate")

    def _summarise(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics of a validation from the rows of ``_evaluate``."""
        return completion_metrics(rows)

    def _teardown(self) -> None:
        steps, self._teardown_steps = getattr(self, "_teardown_steps", []), []
        for step in reversed(steps):
            step()
