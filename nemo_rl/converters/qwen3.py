"""Qwen3 dense: Llama with a norm on each head's queries and keys."""

from __future__ import annotations

from nemo_rl.converters import llama
from nemo_rl.converters.rules import WeightRule
from nemo_rl.converters.transforms import REPLICATED

RULES = [
    *llama.RULES,
    *(
        WeightRule(
            f"decoder.layers.{{layer}}.self_attention.{x}_layernorm.weight",
            (f"model.layers.{{layer}}.self_attn.{x}_norm.weight",),
            REPLICATED,
        )
        for x in "qk"
    ),
]
