"""DTensorBackend: the PyTorch-native training engine of one rank.

Hugging Face models under FSDP2 and tensor parallelism. Knows one rank's model and its
process groups; nothing about Ray, prompts or rewards. Every method is a collective: all
ranks call it, in the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
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
from nemo_rl.backends.training.dtensor import checkpoint, step
from nemo_rl.backends.training.dtensor.model import ShardedModel, make_mesh
from nemo_rl.backends.training.dtensor.optimizer import (
    build_optimizer,
    finish_gradients,
)
from nemo_rl.backends.training.hf_folder import write_hf_folder
from nemo_rl.backends.training.micro_batches import split_micro_batches
from nemo_rl.backends.training.schedule import set_learning_rate
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.utils.exceptions import ConfigurationError


class DTensorBackend:
    """Weights, optimizer and reference weights of one rank.

    Attributes (after ``setup``):
        platform: device and library settings of this process.
        sharded: this rank's part of the model.
        updates: optimizer steps made so far.
        decode: turns ids into text for stop strings, where somebody set it.
    """

    decode: Callable[[list[int]], str] | None = None

    def setup(self, config: EngineConfig) -> None:
        """Join the process group, build model and optimizer, load the base weights.

        Raises:
            ConfigurationError: the folder holds no model that transformers knows, or
                there is no tensor-parallel plan for it.
            ResourceError: no GPU where one was promised.
        """
        self.platform: Platform = setup_platform(
            config.rank, threads=config.threads, megatron=False
        )
        random.seed(config.seed)
        torch.manual_seed(config.seed)
        self.updates = 0
        self.config: PolicyConfig = config.policy
        self.model_folder = Path(config.model_folder)
        _refuse_quantised(read_hf_config(self.model_folder), self.model_folder)
        mesh = make_mesh(
            self.platform.device,
            config.rank.world_size,
            config.policy.dtensor_cfg.tensor_parallel_size,
        )
        self.sharded = ShardedModel(
            self.model_folder, config.policy, self.platform.device, mesh
        )
        self._reference = self._copy_weights() if config.keep_reference else None
        self._teacher = self._build_teacher(config.teacher_folder)
        self.optimizer = build_optimizer(self.sharded, config.policy)

    @property
    def model(self) -> Any:
        """The model under FSDP2."""
        return self.sharded.module

    def train_step(self, batch: Batch, loss_fn: LossFunction) -> dict[str, Any]:
        """One optimizer step on this rank's shard of a global batch.

        Args:
            batch: train batch [b, ...] with ``global_valid_tokens`` and
                ``global_valid_seqs``.
            loss_fn: called once per micro-batch.

        Returns:
            ``grad_norm``, ``learning_rate``, ``update_successful`` and
            ``micro_metrics``: one dict of floats per micro-batch.
        """
        self.model.train()
        self.optimizer.zero_grad()
        rate = set_learning_rate(self.optimizer, self.config, self.updates)
        size = self.config.train_micro_batch_size * rows_per_sample(loss_fn)
        micro = self._micro_batches(batch, size)
        if (count := teacher_topk(loss_fn)) is not None:
            step.add_teacher(self._teacher_context(), micro, count)
        results = step.forward_backward(self._context(), micro, loss_fn)
        grad_norm = finish_gradients(self.sharded, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return {
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "update_successful": True,
            "micro_metrics": results,
        }

    def get_logprobs(self, batch: Batch) -> Tensor:
        """[b, S] fp32 log-probs of the current weights."""
        self.model.eval()
        size = self.config.logprob_batch_size or self.config.train_micro_batch_size
        micro = self._micro_batches(batch, size)
        rows, columns = batch["input_ids"].shape
        logprobs = step.forward_logprobs(self._context(), micro, rows)
        dense = logprobs.new_zeros(rows, columns)
        width = min(columns, logprobs.shape[1])
        dense[:, :width] = logprobs[:, :width]
        return dense

    def get_reference_logprobs(self, batch: Batch) -> Tensor:
        """As ``get_logprobs`` under the base weights, swapped in for the call."""
        with self._reference_weights():
            return self.get_logprobs(batch)

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """Write weights, optimizer, update count and generators below ``path``.

        Configuration and tokenizer go with them: the checkpoint is the whole model.
        """
        optimizer = self.optimizer if with_optimizer else None
        changes = {**self.config.hf_config_overrides, "dtype": "float32"}
        checkpoint.save(Path(path), self.sharded, optimizer, self.updates, changes)

    def load_checkpoint(self, path: Path) -> None:
        """Restore what ``save_checkpoint`` wrote, under any layout.

        The reference stays the base model's: it was copied from the Hugging Face
        folder before.
        """
        self.updates = checkpoint.load(Path(path), self.sharded, self.optimizer)

    def export_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, full tensor in ``policy.precision``)."""
        return self.sharded.full_weights()

    def weight_specs(self) -> list[TensorSpec] | None:
        """What ``export_weights`` yields; None but on rank 0, which sends it."""
        if dist.get_rank():
            return None
        dtype = str(self.sharded.dtype).removeprefix("torch.")
        shapes = self.sharded.shapes().items()
        return [TensorSpec(name, dtype, shape) for name, shape in shapes]

    def import_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace all weights by full tensors under their Hugging Face names.

        Raises:
            ConfigurationError: missing, surplus or misshapen tensors.
        """
        self.sharded.fill(weights)

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder, with tokenizer and config."""
        dtype = self.sharded.dtype
        names = [(n, shape, dtype) for n, shape in self.sharded.shapes().items()]
        changes = {"dtype": str(dtype).removeprefix("torch.")}
        write_hf_folder(
            Path(folder),
            names if dist.get_rank() == 0 else None,
            self.export_weights(),
            source=self.model_folder,
            changes={**self.config.hf_config_overrides, **changes},
        )

    def shutdown(self) -> None:
        """Leave the process groups."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _context(self) -> step.ForwardContext:
        return step.ForwardContext(
            model=self.sharded,
            temperature=self.config.generation.temperature or 1.0,
            chunk=self.config.logprob_chunk_size,
            clear_cache_every=self.config.dtensor_cfg.clear_cache_every_n_steps,
        )

    def _build_teacher(self, folder: Path | None) -> ShardedModel | None:
        """A second model under the same layout, for looking at only."""
        if folder is None:
            return None
        # The policy's overrides are its own.
        config = self.config.model_copy(update={"hf_config_overrides": {}})
        device, mesh = self.platform.device, self.sharded.mesh
        teacher = ShardedModel(folder, config, device, mesh, frozen=True)
        if teacher.vocab_size != self.sharded.vocab_size:
            raise ConfigurationError(
                f"the teacher {folder} has a vocabulary of {teacher.vocab_size} "
                f"tokens, the policy one of {self.sharded.vocab_size}: a distribution "
                "over tokens can only be learned from a model of the same tokenizer."
            )
        teacher.module.eval()
        return teacher

    def _teacher_context(self) -> step.ForwardContext:
        if self._teacher is None:
            raise ConfigurationError(
                "the loss asks for a teacher, and this policy was made without one: "
                "give Policy a teacher."
            )
        return replace(self._context(), model=self._teacher)

    def _micro_batches(self, batch: Batch, size: int) -> list[dict[str, Tensor]]:
        multiple = self.config.make_sequence_length_divisible_by
        return split_micro_batches(batch, size, self.platform.device, multiple=multiple)

    def _copy_weights(self) -> dict[str, Tensor]:
        weights = self.sharded.local_weights().items()
        return {name: w.detach().to("cpu", copy=True) for name, w in weights}

    @contextmanager
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
    def _fill(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.sharded.local_weights().items():
            weight.copy_(values[name])


def _refuse_quantised(hf_config: dict[str, Any], folder: Path) -> None:
    if hf_config.get("quantization_config"):
        raise ConfigurationError(
            f"{folder}/config.json describes quantised weights; training needs a "
            "folder with float weights (load it with transformers, dequantise, "
            "save_pretrained)."
        )
