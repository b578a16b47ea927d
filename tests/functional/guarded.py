"""A real vLLM engine beside a real trainer of fp32, and transfers that can go wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.vllm.backend import VLLMBackend
from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.backends.refit.base import TensorSpec
from nemo_rl.backends.refit.digest import dtype_name, sent_digests
from nemo_rl.backends.refit.held import merge_ranks
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.guard_findings import Transferred
from tests.fakes import models

Weights = dict[str, torch.Tensor]
SHAPE = {"layers": 2, "hidden": 128, "heads": 4, "kv_heads": 2}
"""Heads of 32: the least that vLLM's attention on a CPU can."""


def tiny_folder(folder: Path, family: str, **changes: Any) -> Path:
    """A random model that vLLM's CPU engine accepts."""
    return models.save(folder, family, **{**SHAPE, **changes})


def hf_weights(model: torch.nn.Module) -> Weights:
    """Tensors of a folder of this model: experts apart, no tied output layer."""
    weights = {}
    for name, weight in model.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            halves = dict(zip(("gate", "up"), weight.detach().chunk(2, 1), strict=True))
        elif name.endswith("experts.down_proj"):
            halves = {"down": weight.detach()}
        else:
            weights[name] = weight.detach()
            continue
        stem = name.rpartition(".")[0]
        weights |= {
            f"{stem}.{expert}.{kind}_proj.weight": part.contiguous()
            for kind, parts in halves.items()
            for expert, part in enumerate(parts)
        }
    return weights


def specs_of(weights: Mapping[str, torch.Tensor]) -> list[TensorSpec]:
    """The plan of a transfer of these tensors."""
    return [
        TensorSpec(name, dtype_name(w.dtype), tuple(w.shape))
        for name, w in weights.items()
    ]


def shapes_of(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {name: tuple(w.shape) for name, w in weights.items()}


class Pair:
    """A trainer and an engine of the same model.

    Args:
        folder: of the model.
        temperature: of both.
        tensor_parallel: processes of the engine.
        more: further arguments of the engine.
    """

    def __init__(
        self,
        folder: Path,
        *,
        temperature: float = 0.7,
        tensor_parallel: int = 1,
        **more: Any,
    ) -> None:
        self.trainer = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.temperature, self.version = temperature, 0
        settings = VllmSettings(
            model=str(folder),
            dtype="float32",
            max_model_len=128,
            max_new_tokens=12,
            temperature=temperature,
            tensor_parallel=tensor_parallel,
            kv_bytes_per_token=4096,
        )
        # Some of these are refused in a recipe: they are the faults.
        object.__setattr__(settings, "more", {"max_num_seqs": 8, **more})
        self.engine = VLLMBackend()
        self.engine.setup(settings)

    def learn(self, size: float = 0.01) -> None:
        """Move every weight of the trainer, as an update does."""
        draw = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for weight in self.trainer.parameters():
                weight += size * torch.randn(weight.shape, generator=draw)

    def refit(
        self,
        fault: Callable[[Weights], Weights] | None = None,
        *,
        skip: bool = False,
        planned: Callable[[Weights], Weights] | None = None,
    ) -> Transferred:
        """Send the trainer's weights and read back what the engine holds.

        Args:
            fault: what happens to them on the way.
            skip: they are not sent at all.
            planned: what the trainer means to send; None: everything.
        """
        self.version += 1
        weights = hf_weights(self.trainer)
        weights = planned(weights) if planned else weights
        sent = {name: sent_digests(w) for name, w in weights.items()}
        if not skip:
            travelling = {name: w.clone() for name, w in weights.items()}
            self._send(fault(travelling) if fault else travelling)
        return self.read_back(sent)

    def _send(self, weights: Weights) -> None:
        """As ``update_weights``, but parts of the weights pass too."""
        with tempfile.TemporaryDirectory() as folder:
            save_file(weights, f"{folder}/model.safetensors")
            self.engine._engine.update(
                "nemo_rl_load_files", folder, True, version=self.version
            )

    def read_back(self, sent: Mapping[str, Any]) -> Transferred:
        """What the engine holds of what was sent."""
        weights = hf_weights(self.trainer)
        weights = {name: weights[name] for name in sent}
        held = merge_ranks(self.engine.held(specs_of(weights)), shapes_of(weights))
        return Transferred(version=self.version, sent=sent, engines=[held])

    def generate(self, batch: BatchedDataDict) -> BatchedDataDict:
        """Sample as a rollout does."""
        params = SamplingParams(
            max_new_tokens=12, max_total_length=128, temperature=self.temperature
        )
        return BatchedDataDict(self.engine.generate(batch, params))

    @torch.no_grad()
    def score(self, batch: BatchedDataDict) -> BatchedDataDict:
        """Log-probs of the trainer, at the temperature of sampling."""
        ids = batch["input_ids"]
        logits = self.trainer(ids).logits[:, :-1] / self.temperature
        chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        logprobs = torch.cat([torch.zeros(len(ids), 1), chosen], dim=1)
        return BatchedDataDict({"logprobs": logprobs})

    def rollout(self, rows: int = 4) -> BatchedDataDict:
        """A rollout batch of the engine."""
        draw = torch.Generator().manual_seed(self.version)
        ids = torch.randint(3, 131, (rows, 6), generator=draw)
        prompts = BatchedDataDict(
            {
                "input_ids": ids,
                "input_lengths": torch.full((rows,), 6),
                "sampling_seed": torch.arange(rows),
            }
        )
        out = self.generate(prompts)
        places = torch.arange(out["output_ids"].shape[1])[None]
        lengths = out["unpadded_sequence_lengths"][:, None]
        return BatchedDataDict(
            {
                "input_ids": out["output_ids"],
                "input_lengths": out["unpadded_sequence_lengths"],
                "token_mask": ((places >= 6) & (places < lengths)).float(),
                "sample_mask": torch.ones(rows),
                "generation_logprobs": out["logprobs"],
                "token_versions": out["token_versions"],
            }
        )
