"""PolicyWorker: an actor shell around the engines of one rank.

Knows no Ray: a worker group constructs it and calls its methods, on every rank at once.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import torch

from nemo_rl.backends.factory import get_generation_backend, get_training_backend
from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.training.base import EngineConfig, LossFunction
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.rank import RankInfo


class PolicyWorker:
    """One rank of a policy: trains, scores and generates with the same weights.

    Args:
        rank_info: this worker's place.
        policy: the policy section as plain data.
        model_folder: local Hugging Face folder of the base model.
        tokenizer_folder: loaded only when stop strings ask for text.
        keep_reference: keep the base weights for the KL penalty.
        teacher_folder: local Hugging Face folder of a teacher, None without one.
        seed: the run's seed.
        threads: CPU threads of this rank.
    """

    def __init__(
        self,
        rank_info: RankInfo,
        *,
        policy: dict[str, Any],
        model_folder: str,
        tokenizer_folder: str | None = None,
        keep_reference: bool = False,
        teacher_folder: str | None = None,
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        self.rank = rank_info
        self.policy = PolicyConfig.from_mapping(policy)
        self.training = get_training_backend("megatron")
        self.training.setup(
            EngineConfig(
                rank=rank_info,
                policy=self.policy,
                model_folder=Path(model_folder),
                keep_reference=keep_reference,
                teacher_folder=Path(teacher_folder) if teacher_folder else None,
                seed=seed,
                threads=threads,
            )
        )
        if self.policy.generation.stop_strings and tokenizer_folder is not None:
            from nemo_rl.data.tokenizer import load_tokenizer

            self.training.decode = load_tokenizer(tokenizer_folder).decode
        self.generation = get_generation_backend(self.policy.generation.backend)
        self.generation.setup(self.training)

    def describe(self) -> dict[str, Any]:
        """Where this rank runs and what it holds, for the log."""
        return {
            "rank": self.rank.rank,
            "host": socket.gethostname(),
            "device": str(self.training.platform.device),
            "parameters": sum(p.numel() for p in self.training.model.parameters()),
            "torch": torch.__version__,
        }

    def generate(
        self, prompts: dict[str, Any], params: SamplingParams
    ) -> dict[str, torch.Tensor]:
        """Responses for this replica's prompts."""
        return self.generation.generate(prompts, params)

    def get_logprobs(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """Log-probs of this replica's rows; None off the last pipeline stage."""
        return self.training.get_logprobs(batch)

    def get_reference_logprobs(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """As ``get_logprobs`` under the base weights."""
        return self.training.get_reference_logprobs(batch)

    def get_scores(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """A reward model's scores of this replica's rows; None off the last stage."""
        return self.training.get_scores(batch)

    def train_step(
        self, batch: dict[str, Any], loss_fn: LossFunction
    ) -> dict[str, Any]:
        """One update from this replica's shard of a global batch."""
        start = time.process_time()
        result = self.training.train_step(batch, loss_fn)
        result["cpu_s"] = time.process_time() - start
        result["peak_memory_bytes"] = self.training.platform.peak_memory_bytes()
        return result

    def save_checkpoint(self, path: str, with_optimizer: bool = True) -> None:
        """Write this rank's part of a checkpoint."""
        self.training.save_checkpoint(Path(path), with_optimizer=with_optimizer)

    def load_checkpoint(self, path: str) -> None:
        """Restore this rank's part of a checkpoint."""
        self.training.load_checkpoint(Path(path))

    def save_hf(self, folder: str) -> None:
        """Write this rank's part of a Hugging Face folder."""
        self.training.save_hf(Path(folder))

    def shutdown(self) -> None:
        """Release memory and process groups."""
        self.generation.shutdown()
        self.training.shutdown()
