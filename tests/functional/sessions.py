"""A scripted life of one engine on a rank: steps, saves, loads, scores, in order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from tests.functional.engines import engine, grpo_batch, policy_config, shard

LAYOUTS = {"one": (1, 1, 1), "tp2": (2, 2, 1), "pp2": (2, 1, 2), "dp2": (2, 1, 1)}
"""Name to (world size, tp, pp)."""

LOSS = ClippedPGLossConfig(reference_policy_kl_penalty=0.1)


class Session:
    """One engine; each method is one thing that can happen to it.

    Args:
        rank: this rank.
        folder: Hugging Face folder.
        layout: key of ``LAYOUTS``.
        seed: of the generators.
        changes: fields of the policy section.
    """

    def __init__(
        self, rank: Any, folder: Path, layout: str, *, seed: int = 0, **changes: Any
    ) -> None:
        _, tp, pp = LAYOUTS[layout]
        self.rank = rank
        self.config = policy_config(tp, pp, **changes)
        self.backend = engine(rank, folder, self.config, keep_reference=True, seed=seed)

    def step(self, number: int) -> dict[str, float]:
        """One update on batch ``number``; the loss share of this rank."""
        batch = shard(grpo_batch(seed=number), self.rank, self.config)
        result = self.backend.train_step(batch, GRPOLossFn(LOSS))
        return {
            "loss": sum(m["loss"] for m in result["micro_metrics"]),
            "grad_norm": result["grad_norm"],
            "learning_rate": result["learning_rate"],
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """Full tensors of this stage under their Hugging Face names."""
        return {name: w.clone() for name, w in self.backend.export_weights()}

    def scores(self, reference: bool = False) -> torch.Tensor | None:
        """Log-probs of a fixed batch; None off the last stage."""
        batch = grpo_batch(seed=77)
        if reference:
            return self.backend.get_reference_logprobs(batch)
        return self.backend.get_logprobs(batch)

    def draws(self) -> list[Any]:
        """A number of each generator, which moves them all."""
        from megatron.core.tensor_parallel import get_cuda_rng_tracker

        with get_cuda_rng_tracker().fork():
            tracked = torch.rand(2).tolist()
        return [random.random(), torch.rand(2).tolist(), tracked]

    def save(self, path: Path, **options: Any) -> None:
        """Write a checkpoint into a folder that is made here."""
        path.mkdir(parents=True, exist_ok=True)
        self.backend.save_checkpoint(path, **options)


def merged(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights of all stages."""
    weights: dict[str, torch.Tensor] = {}
    for part in parts:
        weights.update(part)
    return weights
