"""Llama 2 and 3, and models of the same shape (SmolLM2)."""

from __future__ import annotations

from nemo_rl.converters.rules import WeightRule
from nemo_rl.converters.transforms import (
    COLUMN,
    COLUMN_GATED,
    REPLICATED,
    ROW,
    MergeGateUp,
    MergeQkv,
    PadVocabulary,
)

_M = "decoder.layers.{layer}."
_H = "model.layers.{layer}."
_QKV = tuple(_H + f"self_attn.{x}_proj.weight" for x in "qkv")
_GATE_UP = tuple(_H + f"mlp.{x}_proj.weight" for x in ("gate", "up"))

RULES = [
    WeightRule(
        "embedding.word_embeddings.weight",
        ("model.embed_tokens.weight",),
        COLUMN,
        PadVocabulary(),
    ),
    WeightRule("output_layer.weight", ("lm_head.weight",), COLUMN, PadVocabulary()),
    WeightRule("decoder.final_layernorm.weight", ("model.norm.weight",), REPLICATED),
    WeightRule(
        _M + "input_layernorm.weight", (_H + "input_layernorm.weight",), REPLICATED
    ),
    WeightRule(
        _M + "pre_mlp_layernorm.weight",
        (_H + "post_attention_layernorm.weight",),
        REPLICATED,
    ),
    WeightRule(_M + "self_attention.linear_qkv.weight", _QKV, COLUMN, MergeQkv()),
    WeightRule(
        _M + "self_attention.linear_proj.weight",
        (_H + "self_attn.o_proj.weight",),
        ROW,
    ),
    WeightRule(_M + "mlp.linear_fc1.weight", _GATE_UP, COLUMN_GATED, MergeGateUp()),
    WeightRule(_M + "mlp.linear_fc2.weight", (_H + "mlp.down_proj.weight",), ROW),
]
