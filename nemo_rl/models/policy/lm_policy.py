"""Policy: training, scoring and generation over one group of workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_rl.backends.factory import own_classes
from nemo_rl.backends.training.base import LossFunction
from nemo_rl.config.backends import (
    generates_apart,
    generation_backend,
    parallel_dims,
    training_backend,
    worker_env,
)
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.config.validation import validate_model_shape
from nemo_rl.converters.families import model_spec, rules_for
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import matmul_parameters
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import VirtualCluster
from nemo_rl.infra.assets import resolve_model
from nemo_rl.metrics.throughput import tflops_per_worker, training_flops
from nemo_rl.models.generation.stops import end_tokens
from nemo_rl.models.policy.engines import guard_of, start_engines
from nemo_rl.models.policy.generation_policy import GenerationPolicy
from nemo_rl.models.policy.in_use import SectionsInUse
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.models.policy.synced_generation import SyncedGeneration
from nemo_rl.models.policy.training_policy import TrainingPolicy
from nemo_rl.models.policy.workers import PolicyWorker
from nemo_rl.utils.exceptions import ConfigurationError

if TYPE_CHECKING:
    from nemo_rl.models.policy.guard import GuardOutcome


class Policy(SectionsInUse, PolicyInterface):
    """A language model on a cluster, trained and sampled with the same weights.

    Args:
        cluster: places for the workers; the layout must fill it.
        config: the policy section (a mapping, a ``PolicyConfig``, or a whole recipe).
        tokenizer: supplies the stop token; None leaves only configured stops.
        keep_reference: keep the initial weights for ``get_reference_logprobs``.
        teacher: folder or name of a model of the same vocabulary to learn from, which
            the workers hold under the policy's layout; None without one.
        seed: for the workers' generators.
        threads: CPU threads of each worker.

    Raises:
        ConfigurationError: no such model, or a layout that does not divide it.
    """

    def __init__(  # noqa: PLR0913 - keyword-only beyond the three everybody passes
        self,
        cluster: VirtualCluster,
        config: PolicyConfig | Mapping[str, Any],
        tokenizer: Any = None,
        *,
        keep_reference: bool = True,
        teacher: str | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        self.config = _policy_section(config)
        self.synced: SyncedGeneration | None = None
        self.version = 0
        names = training_backend(self.config), generation_backend(self.config)
        classes = own_classes(*names)
        self._moves_weights = any(kind == "generation" for kind, _ in classes)
        self.dims = parallel_dims(self.config, cluster.world_size)
        self.model_folder = resolve_model(self.config.model_name)
        hf_config = read_hf_config(self.model_folder)
        hf_config |= self.config.hf_config_overrides
        self.spec = _spec(hf_config, self.model_folder, needed=names[0] == "megatron")
        if self.spec is not None and self.config.reward_model_cfg.enabled:
            self.spec = self.spec.with_score()
        validate_model_shape(self.config, hf_config)
        engines = None
        if generates_apart(self.config):
            engines = start_engines(
                self.config, cluster, tokenizer, seed=seed, threads=threads
            )
        self.workers = cluster.start_workers(
            PolicyWorker,
            num_workers=self.dims.world_size,
            env=worker_env(self.config),
            init_kwargs={
                "policy": self.config.to_dict(),
                "model_folder": str(self.model_folder),
                "tokenizer_folder": self.config.tokenizer.name
                or str(self.model_folder),
                "keep_reference": keep_reference,
                "teacher_folder": str(resolve_model(teacher)) if teacher else None,
                "seed": seed,
                "threads": threads,
                "classes": classes,
            },
        )
        self.training = TrainingPolicy(self.workers, self.dims, self.config)
        # Held while weights change or move.
        self._weights = threading.RLock()
        self.stream = engines
        colocated = self.config.generation.colocated.enabled
        self.generates_apart = engines is not None and not colocated
        self.generation: GenerationPolicy | SyncedGeneration
        if engines is not None:
            self.generation = self.synced = SyncedGeneration(
                self.workers,
                engines,
                self.config,
                weights=self._weights,
                score=self.training.get_logprobs,
                guard=guard_of(self.config, engines.settings.dtype, tokenizer),
            )
        else:
            stops = end_tokens(tokenizer, self.model_folder)
            self.generation = GenerationPolicy(
                self.workers, self.dims, self.config, stop_token_ids=stops
            )

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample one response per row; see ``GenerationPolicy.generate``."""
        if self.config.reward_model_cfg.enabled:
            raise ConfigurationError(
                "a reward model generates nothing: it has a score in place of a "
                "distribution over tokens (policy.reward_model_cfg.enabled)"
            )
        return self.generation.generate(data, greedy)

    def get_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``logprobs`` [B, S] fp32 under the current weights."""
        return self.training.get_logprobs(data)

    def get_reference_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``reference_policy_logprobs`` [B, S] fp32 under the initial weights."""
        return self.training.get_reference_logprobs(data)

    def get_scores(self, data: BatchedDataDict) -> BatchedDataDict:
        """``scores`` [B] fp32 of a reward model."""
        if not self.config.reward_model_cfg.enabled:
            return super().get_scores(data)
        return self.training.get_scores(data)

    def train(self, data: BatchedDataDict, loss_fn: LossFunction) -> dict[str, Any]:
        """Update the weights; see ``TrainingPolicy.train``. Adds the model FLOPs."""
        started = time.perf_counter()
        with self._changing_weights():
            metrics = self.training.train(data, loss_fn)
            self.version += 1
        if self.spec is None:
            return metrics
        flops = training_flops(
            data["input_lengths"].tolist(),
            parameters=matmul_parameters(rules_for(self.spec), self.spec),
            layers=self.spec.num_layers,
            attention_width=self.spec.num_heads * self.spec.head_dim,
        )
        seconds = time.perf_counter() - started
        metrics["train_tflops_per_worker"] = tflops_per_worker(
            flops, seconds, self.dims.world_size
        )
        return metrics

    def refit(self) -> dict[str, float]:
        """Give the generator the trained weights, where it does not share them.

        Returns:
            Metrics of the transfer; none where nothing moves.
        """
        if self.synced is not None:
            return self.synced.refit()
        if self._moves_weights:
            self.training.refit()
        return {}

    def export_weights(self) -> dict[str, Any]:
        """All weights as full tensors under their Hugging Face names, on the CPU."""
        return self.training.export_weights()

    def import_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace all weights: Hugging Face names to full tensors on the CPU."""
        with self._changing_weights():
            self.training.import_weights(dict(weights))

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """Write weights, optimizer and generators of every rank below ``path``."""
        self.training.save_checkpoint(path, with_optimizer=with_optimizer)
        if self.synced is not None:
            self.synced.save(path)

    def load_checkpoint(self, path: Path) -> None:
        """Restore what ``save_checkpoint`` wrote, under any layout."""
        with self._changing_weights():
            self.training.load_checkpoint(path)
            if self.synced is not None:
                self.synced.load(path)

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""
        self.training.save_hf(folder)

    def shutdown(self) -> None:
        """End the workers, and the engines beside them."""
        if self.synced is not None:
            self.synced.shutdown()
        self.workers.shutdown()

    @property
    def version(self) -> int:
        """How often the weights were trained; a generator's tokens carry it."""
        return self._version

    @version.setter
    def version(self, value: int) -> None:
        self._version = value
        if self.synced is not None:
            self.synced.version = value

    def check_rollout(self, data: BatchedDataDict) -> GuardOutcome | None:
        """Does what was sampled fit the trainer's weights? None: it cannot but.

        Raises:
            ConsistencyError: it does not; names the report.
        """
        return None if self.synced is None else self.synced.check_rollout(data)

    def report_to(self, log_dir: Path, run_config: Mapping[str, Any]) -> None:
        """Say where reports of the guard go, and what stands in them beside findings.

        Args:
            log_dir: of the run.
            run_config: its configuration; secrets are masked.
        """
        if self.synced is not None:
            self.synced.report_to(log_dir, run_config)

    @contextmanager
    def _changing_weights(self) -> Iterator[None]:
        with self._weights:
            if self.synced is not None:
                self.synced.rest()
            yield
            if self.synced is not None:
                self.synced.outdated()


def _policy_section(config: Any) -> PolicyConfig:
    if not isinstance(config, PolicyConfig) and "policy" in config:
        return _policy_section(config["policy"])
    # A section that was changed field by field is checked as a whole here.
    return PolicyConfig.from_mapping(config)


def _spec(
    hf_config: Mapping[str, Any], folder: Path, *, needed: bool
) -> ModelSpec | None:
    """The model's shape; None for a model that only other engines than Megatron know.

    They want it for the count of FLOPs alone.
    """
    try:
        return model_spec(hf_config, source=f"{folder}/config.json")
    except ConfigurationError:
        if needed:
            raise
        return None
