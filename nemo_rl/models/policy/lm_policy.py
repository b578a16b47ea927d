"""Policy: training, scoring and generation over one group of workers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rl.backends.training.base import LossFunction
from nemo_rl.config.parallel import ParallelDims
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.config.validation import validate_model_shape
from nemo_rl.converters.families import model_spec, rules_for
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.rules import matmul_parameters
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import VirtualCluster
from nemo_rl.infra.assets import resolve_model
from nemo_rl.metrics.throughput import tflops_per_worker, training_flops
from nemo_rl.models.policy.generation_policy import GenerationPolicy
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.models.policy.training_policy import TrainingPolicy
from nemo_rl.models.policy.workers import PolicyWorker
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean


class Policy(PolicyInterface):
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
        megatron = self.config.megatron_cfg
        self.dims = ParallelDims(
            world_size=cluster.world_size,
            tp=megatron.tensor_model_parallel_size,
            pp=megatron.pipeline_model_parallel_size,
        )
        self.model_folder = resolve_model(self.config.model_name)
        hf_config = read_hf_config(self.model_folder)
        hf_config |= self.config.hf_config_overrides
        self.spec = model_spec(hf_config, source=f"{self.model_folder}/config.json")
        if self.config.reward_model_cfg.enabled:
            self.spec = self.spec.with_score()
        validate_model_shape(self.config, hf_config)
        self.workers = cluster.start_workers(
            PolicyWorker,
            num_workers=self.dims.world_size,
            env=megatron.env_vars,
            init_kwargs={
                "policy": self.config.to_dict(),
                "model_folder": str(self.model_folder),
                "tokenizer_folder": self.config.tokenizer.name
                or str(self.model_folder),
                "keep_reference": keep_reference,
                "teacher_folder": str(resolve_model(teacher)) if teacher else None,
                "seed": seed,
                "threads": threads,
            },
        )
        self.training = TrainingPolicy(self.workers, self.dims, self.config)
        stops = _stop_ids(tokenizer, self.model_folder)
        self.generation = GenerationPolicy(
            self.workers, self.dims, self.config, stop_token_ids=stops
        )

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample one response per row; see ``GenerationPolicy.generate``."""
        if self.spec.scored:
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
        if not self.spec.scored:
            return super().get_scores(data)
        return self.training.get_scores(data)

    def train(self, data: BatchedDataDict, loss_fn: LossFunction) -> dict[str, Any]:
        """Update the weights; see ``TrainingPolicy.train``. Adds the model FLOPs."""
        started = time.perf_counter()
        metrics = self.training.train(data, loss_fn)
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

    def refit(self) -> None:
        """Give the generator the trained weights: it shares them, nothing moves."""

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """Write weights, optimizer and generators of every rank below ``path``."""
        self.training.save_checkpoint(path, with_optimizer=with_optimizer)

    def load_checkpoint(self, path: Path) -> None:
        """Restore what ``save_checkpoint`` wrote, under any layout."""
        self.training.load_checkpoint(path)

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""
        self.training.save_hf(folder)

    def shutdown(self) -> None:
        """End the workers."""
        self.workers.shutdown()


class MegatronPolicy(Policy):
    """A policy by keywords, on a cluster of its own.

    Args:
        model_name: folder or name of the model.
        tokenizer: as for ``Policy``.
        cluster: None starts a process in place for one worker.
        **kwargs: fields of ``policy.megatron_cfg`` or of the policy section.

    Example:
        >>> MegatronPolicy("my-model", tensor_model_parallel_size=2)  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name: str,
        tokenizer: Any = None,
        cluster: VirtualCluster | None = None,
        **kwargs: Any,
    ) -> None:
        from nemo_rl.config.megatron import MegatronConfig

        layout = {
            k: kwargs.pop(k) for k in [*kwargs] if k in MegatronConfig.model_fields
        }
        known = {*MegatronConfig.model_fields, *PolicyConfig.model_fields}
        for name in [name for name in kwargs if name not in known]:
            raise ConfigurationError(
                f"MegatronPolicy has no option {name!r}.{did_you_mean(name, known)}"
            )
        section = {"model_name": model_name, "megatron_cfg": layout, **kwargs}
        config = PolicyConfig.from_mapping(section)
        if cluster is None:
            from nemo_rl.distributed.local import LocalCluster

            cluster = LocalCluster()
        super().__init__(cluster, config, tokenizer)


def _policy_section(config: Any) -> PolicyConfig:
    if isinstance(config, PolicyConfig):
        return config
    if "policy" in config:
        return _policy_section(config["policy"])
    return PolicyConfig.from_mapping(config)


def _stop_ids(tokenizer: Any, model_folder: Path) -> tuple[int, ...]:
    """The tokenizer's end token, and those that the model was released with.

    Chat models end a turn and a text with different tokens; generation_config.json
    lists all of them.
    """
    found = [getattr(tokenizer, "eos_token_id", None)]
    path = model_folder / "generation_config.json"
    if path.exists():
        try:
            released = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
        except KeyError:
            released = None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from None
        found += released if isinstance(released, list) else [released]
    return tuple(sorted({int(token) for token in found if token is not None}))
