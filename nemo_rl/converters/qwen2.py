"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from __future__ import annotations

from nemo_rl.converters import llama
from nemo_rl.converters.rules import WeightRule
from nemo_rl.converters.transforms import COLUMN, MergeQkv

RULES = [
    *llama.RULES,
    WeightRule(
        "decoder.layers.{layer}.self_attention.linear_qkv.bias",
        tuple(f"model.layers.{{layer}}.self_attn.{x}_proj.bias" for x in "qkv"),
        COLUMN,
        MergeQkv(),
    ),
]
