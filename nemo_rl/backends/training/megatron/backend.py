"""MegatronBackend: the training engine of one rank; each method a few lines.

Knows one rank's model and its process groups; nothing about Ray, prompts or rewards.
Every method is a collective: all ranks call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_rl.backends.platform import Platform
from nemo_rl.backends.platform import setup as setup_platform
from nemo_rl.backends.refit.base import TensorSpec
from nemo_rl.backends.training.base import (
    Batch,
    EngineConfig,
    LossFunction,
    rows_per_sample,
    teacher_topk,
)
from nemo_rl.backends.training.micro_batches import split_micro_batches
from nemo_rl.backends.training.schedule import set_learning_rate
from nemo_rl.converters.families import model_spec, score_config
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.utils.exceptions import ConfigurationError


class MegatronBackend:
    """Weights, optimizer and reference weights of one rank.

    Attributes (after ``setup``):
        platform: device and library settings of this process.
        spec: shape of the model.
        model: bare model; ``ddp`` is the same with gradient buffers.
        updates: optimizer steps made so far.
    """

    def setup(self, config: EngineConfig) -> None:
        """Join the process group, build model and optimizer, load the base weights.

        Raises:
            ConfigurationError: the folder does not hold a supported model.
            ResourceError: no GPU where one was promised.
        """
        self.platform: Platform = setup_platform(config.rank, threads=config.threads)
        from megatron.core import parallel_state

        from nemo_rl.backends.training.megatron.model import (
            build_model,
            load_hf_weights,
        )
        from nemo_rl.backends.training.megatron.optimizer import (
            build_optimizer,
            wrap_ddp,
        )

        self.updates = 0
        self.config = policy = config.policy
        self.model_folder = Path(config.model_folder)
        overrides = policy.hf_config_overrides
        hf_config = {**read_hf_config(self.model_folder), **overrides}
        source = str(self.model_folder / "config.json")
        self.spec: ModelSpec = model_spec(hf_config, source=source)
        if policy.reward_model_cfg.enabled:
            self.spec = self.spec.with_score()
        megatron = policy.megatron_cfg
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=megatron.tensor_model_parallel_size,
            pipeline_model_parallel_size=megatron.pipeline_model_parallel_size,
            expert_model_parallel_size=megatron.expert_model_parallel_size,
            expert_tensor_parallel_size=1,
        )
        self.platform.seed(config.seed)
        self.model, transformer = build_model(self.spec, policy, self.platform)
        load_hf_weights(self.model, self.spec, self.model_folder, seed=config.seed)
        self._reference = self._copy_weights() if config.keep_reference else None
        self._teacher = self._build_teacher(config.teacher_folder)
        self.ddp = wrap_ddp(self.model, transformer, policy)
        self.optimizer = build_optimizer(policy, self.ddp)

    def train_step(self, batch: Batch, loss_fn: LossFunction) -> dict[str, Any]:
        """One optimizer step on this rank's shard of a global batch.

        Args:
            batch: train batch [b, ...] with ``global_valid_tokens`` and
                ``global_valid_seqs``.
            loss_fn: called once per micro-batch on the last pipeline stage.

        Returns:
            ``grad_norm``, ``learning_rate``, ``update_successful``, and on the last
            stage ``micro_metrics``: one dict of floats per micro-batch.
        """
        from nemo_rl.backends.training.megatron import step

        self.ddp.train()
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        rate = set_learning_rate(self.optimizer, self.config, self.updates)
        size = self.config.train_micro_batch_size * rows_per_sample(loss_fn)
        micro = self._micro_batches(batch, size)
        if (count := teacher_topk(loss_fn)) is not None:
            step.add_teacher(self._teacher_context(), micro, count)
        results = step.forward_backward(self._context(), micro, loss_fn)
        successful, grad_norm, _ = self.optimizer.step()
        self.updates += 1
        return {
            "grad_norm": float(grad_norm),
            "learning_rate": rate,
            "update_successful": bool(successful),
            "micro_metrics": [{k: float(v) for k, v in r.items()} for r in results],
        }

    def get_logprobs(self, batch: Batch) -> Tensor | None:
        """[b, S] fp32 log-probs of the current weights; None off the last stage."""
        logprobs = self._forward_only(batch)
        if logprobs is None:
            return None
        rows, columns = batch["input_ids"].shape
        dense = logprobs.new_zeros(rows, columns)
        width = min(columns, logprobs.shape[1])
        dense[:, :width] = logprobs[:, :width]
        return dense

    def get_scores(self, batch: Batch) -> Tensor | None:
        """[b] fp32 scores of a reward model; None off the last stage."""
        return self._forward_only(batch)

    def get_reference_logprobs(self, batch: Batch) -> Tensor | None:
        """As ``get_logprobs`` under the base weights, swapped in for the call."""
        with self._reference_weights():
            return self.get_logprobs(batch)

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """Write weights, optimizer, update count and generators below ``path``.

        Configuration and tokenizer go with them: the checkpoint is the whole model.
        """
        from nemo_rl.backends.training.megatron import checkpoint

        common = {"updates": self.updates}
        optimizer = self.optimizer if with_optimizer else None
        dtype = str(self.model.config.params_dtype).removeprefix("torch.")
        changes = {**self._config_changes(), "dtype": dtype}
        description = (self.model_folder, changes)
        checkpoint.save(Path(path), self.model, optimizer, common, description)

    def load_checkpoint(self, path: Path) -> None:
        """Restore what ``save_checkpoint`` wrote, under any layout.

        The reference stays the base model's: it was copied from the Hugging Face
        folder before.
        """
        from nemo_rl.backends.training.megatron import checkpoint

        common = checkpoint.load(Path(path), self.model, self.optimizer)
        self.updates = int(common["updates"])

    def export_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, full tensor) of this pipeline stage."""
        from nemo_rl.backends.training.megatron import export

        return export.export_weights(self.model, self.spec)

    def weight_specs(self) -> list[TensorSpec] | None:
        """What this rank's ``export_weights`` yields; None where another sends it."""
        from nemo_rl.backends.training.megatron import export

        if not export.is_writer():
            return None
        return export.weight_specs(self.model, self.spec)

    def is_needed_to_export(self) -> bool:
        """Whether a rank that sends weights needs this one to gather them."""
        from nemo_rl.backends.training.megatron import export

        return export.is_needed()

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder, with tokenizer and config."""
        from nemo_rl.backends.training.megatron import export

        export.save_hf(
            Path(folder),
            self.model,
            self.spec,
            self.model_folder,
            self._config_changes(),
        )

    def shutdown(self) -> None:
        """Leave the process groups."""
        from megatron.core import parallel_state

        if dist.is_initialized():
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()

    def _context(self) -> Any:
        from nemo_rl.backends.training.megatron.step import ForwardContext

        return ForwardContext(
            model=self.ddp,
            vocab_size=self.spec.vocab_size,
            temperature=self.config.generation.temperature or 1.0,
            device=self.platform.device,
            chunk=self.config.logprob_chunk_size,
            scored=self.spec.scored,
        )

    def _build_teacher(self, folder: Path | None) -> Any:
        """A second model under the same layout, for looking at only."""
        if folder is None:
            return None
        from nemo_rl.backends.training.megatron.model import (
            build_model,
            load_hf_weights,
        )

        source = str(folder / "config.json")
        spec = model_spec(read_hf_config(folder), source=source)
        if spec.vocab_size != self.spec.vocab_size:
            raise ConfigurationError(
                f"the teacher {folder} has a vocabulary of {spec.vocab_size} tokens, "
                f"the policy one of {self.spec.vocab_size}: a distribution over tokens "
                "can only be learned from a model of the same tokenizer."
            )
        model, _ = build_model(spec, self.config, self.platform)
        load_hf_weights(model, spec, folder)
        return model.requires_grad_(requires_grad=False).eval()

    def _teacher_context(self) -> Any:
        if self._teacher is None:
            raise ConfigurationError(
                "the loss asks for a teacher, and this policy was made without one: "
                "give Policy a teacher."
            )
        return replace(self._context(), model=self._teacher)

    def _config_changes(self) -> dict[str, Any]:
        """What the model's config.json says otherwise than the base model's."""
        changes = dict(self.config.hf_config_overrides)
        if self.spec.scored:
            changes |= score_config(self.spec)
        return changes

    def _forward_only(self, batch: Batch) -> Tensor | None:
        from nemo_rl.backends.training.megatron import step

        self.ddp.eval()
        size = self.config.logprob_batch_size or self.config.train_micro_batch_size
        micro = self._micro_batches(batch, size)
        return step.forward_only(self._context(), micro, len(batch["input_ids"]))

    def _micro_batches(self, batch: Batch, size: int) -> list[dict[str, Tensor]]:
        multiple = self.config.make_sequence_length_divisible_by
        return split_micro_batches(batch, size, self.platform.device, multiple=multiple)

    def _copy_weights(self) -> list[Tensor]:
        return [w.detach().to("cpu", copy=True) for w in self._weights()]

    def _weights(self) -> list[Tensor]:
        from nemo_rl.backends.training.megatron.model import weights_of_rank

        return [weight for _, _, weight in weights_of_rank(self.model, self.spec)]

    @contextmanager
    @torch.no_grad()
    def _reference_weights(self) -> Iterator[None]:
        if self._reference is None:
            raise RuntimeError("this backend was set up without reference weights")
        current = self._copy_weights()
        self._fill(self._reference)
        try:
            yield
        finally:
            self._fill(current)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.copy_(value)
