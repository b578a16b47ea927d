"""A GRPO step in nothing but torch: the lower bound of the benchmark.

A Llama whose forward pass is as short as torch allows, a KV cache of fixed size, one
backward pass and torch's fused AdamW. No configuration, no layouts, no metrics.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

Cache = list[tuple[Tensor, Tensor]]


class BareLlama:
    """Weights of a Hugging Face Llama folder with tied embeddings, as plain tensors."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.config = config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        self.weights = {k: v.requires_grad_() for k, v in weights.items()}
        self.layers = config["num_hidden_layers"]
        self.head_dim = config["head_dim"]
        self.heads = config["num_attention_heads"]
        self.groups = config["num_key_value_heads"]
        theta = config["rope_parameters"]["rope_theta"]
        exponents = torch.arange(0, self.head_dim, 2) / self.head_dim
        angles = torch.outer(torch.arange(256.0), theta**-exponents).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def new_cache(self, rows: int, columns: int) -> Cache:
        """Keys and values [rows, groups, columns, head_dim] of every layer."""
        shape = (rows, self.groups, columns, self.head_dim)
        return [(torch.empty(shape), torch.empty(shape)) for _ in range(self.layers)]

    def hidden(self, ids: Tensor, start: int = 0, cache: Cache | None = None) -> Tensor:
        """[B, S, H] final states of ids [B, S] at positions ``start`` and after."""
        x = F.embedding(ids, self.weights["model.embed_tokens.weight"])
        end = start + ids.shape[1]
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            entry = None if cache is None else cache[layer]
            normed = self._norm(x, f"{prefix}input_layernorm.weight")
            x = x + self._attention(normed, f"{prefix}self_attn.", start, end, entry)
            normed = self._norm(x, f"{prefix}post_attention_layernorm.weight")
            gate = self._linear(normed, f"{prefix}mlp.gate_proj.weight")
            up = self._linear(normed, f"{prefix}mlp.up_proj.weight")
            x = x + self._linear(F.silu(gate) * up, f"{prefix}mlp.down_proj.weight")
        return self._norm(x, "model.norm.weight")

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of [..., H]."""
        return self._linear(hidden, "model.embed_tokens.weight")

    def _attention(
        self, x: Tensor, prefix: str, start: int, end: int, cache: tuple | None
    ) -> Tensor:
        q = self._rotate(self._heads(x, f"{prefix}q_proj.weight"), start, end)
        k = self._rotate(self._heads(x, f"{prefix}k_proj.weight"), start, end)
        v = self._heads(x, f"{prefix}v_proj.weight")
        if cache is not None:
            keys, values = cache
            keys[:, :, start:end], values[:, :, start:end] = k, v
            k, v = keys[:, :, :end], values[:, :, :end]
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=end - start > 1, enable_gqa=True
        )
        return self._linear(out.transpose(1, 2).flatten(2), f"{prefix}o_proj.weight")

    def _heads(self, x: Tensor, name: str) -> Tensor:
        return self._linear(x, name).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _rotate(self, x: Tensor, start: int, end: int) -> Tensor:
        left, right = x.chunk(2, -1)
        turned = torch.cat((-right, left), -1)
        return x * self.cos[start:end] + turned * self.sin[start:end]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[name]
        return F.rms_norm(x, weight.shape, weight, self.config["rms_norm_eps"])


@torch.no_grad()
def generate(model: BareLlama, ids: Tensor, new_tokens: int) -> Tensor:
    """[B, S + new_tokens]: prompts [B, S] continued at temperature 1."""
    start, columns = 0, ids.shape[1] + new_tokens
    cache = model.new_cache(len(ids), columns)
    while ids.shape[1] < columns:
        hidden = model.hidden(ids[:, start:], start, cache)
        probabilities = model.logits(hidden[:, -1]).softmax(-1)
        start = ids.shape[1]
        ids = torch.cat([ids, torch.multinomial(probabilities, 1)], dim=1)
    return ids


def policy_loss(model: BareLlama, ids: Tensor, width: int, scores: Tensor) -> Tensor:
    """Policy-gradient loss of completions that follow ``width`` prompt tokens.

    Args:
        model: gives the log-probs.
        ids: [B, S] prompts and completions.
        width: tokens of each prompt.
        scores: [P, G] rewards, B = P * G; normalised within each row.
    """
    advantages = (scores - scores.mean(1, keepdim=True)) / (
        scores.std(1, keepdim=True) + 1e-6
    )
    logits = model.logits(model.hidden(ids)[:, width - 1 : -1])
    targets = ids[:, width:]
    negative = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    return (negative.view_as(targets) * advantages.reshape(-1, 1)).mean()
