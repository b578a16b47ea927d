"""What most families share: fields of config.json, and groups of rules."""

from __future__ import annotations

from typing import Any, Literal

from nemo_rl.converters.hf_config import HfConfig
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

M = "decoder.layers.{layer}."
"""Prefix of a layer's weights in Megatron."""
H = "model.layers.{layer}."
"""Prefix of a layer's weights in a Hugging Face folder."""


def common_fields(
    config: HfConfig,
    architecture: str,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    norm_eps: float = 1e-6,
) -> dict[str, Any]:
    """Fields of ``ModelSpec`` that are spelled alike in every family.

    Args:
        config: what is read.
        architecture: of the model.
        kv_heads: what transformers takes where the field is absent; None for as many
            as there are heads.
        head_dim: likewise; None for the share of a head in the hidden channels.
        norm_eps: likewise.
    """
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    return {
        "architecture": architecture,
        "num_layers": config.integer("num_hidden_layers"),
        "hidden_size": hidden,
        "ffn_hidden_size": config.integer("intermediate_size"),
        "num_heads": heads,
        "num_kv_heads": config.integer("num_key_value_heads", kv_heads or heads),
        "head_dim": config.integer("head_dim", head_dim or hidden // heads or 1),
        "vocab_size": config.integer("vocab_size"),
        "max_positions": config.integer("max_position_embeddings", 4096),
        "norm_eps": config.number("rms_norm_eps", norm_eps),
        "tied": bool(config.get("tie_word_embeddings", False)),
    }


def norm(megatron: str, hf: str, dims: str = "hidden") -> WeightRule:
    """The weight of a norm."""
    return WeightRule(megatron, {hf: dims}, REPLICATED)


def ends() -> list[WeightRule]:
    """Embedding, output layer and the norm before it."""
    embedding = {"model.embed_tokens.weight": "vocab hidden"}
    output = {"lm_head.weight": "vocab hidden"}
    return [
        WeightRule(
            "embedding.word_embeddings.weight", embedding, COLUMN, PadVocabulary()
        ),
        WeightRule("output_layer.weight", output, COLUMN, PadVocabulary()),
        norm("decoder.final_layernorm.weight", "model.norm.weight"),
    ]


def score() -> WeightRule:
    """The output layer of a reward model."""
    return WeightRule("output_layer.weight", {"score.weight": "1 hidden"}, REPLICATED)


def layer_norms(before_mlp: str = "post_attention_layernorm") -> list[WeightRule]:
    """The norms before attention and before the MLP."""
    return [
        norm(M + "input_layernorm.weight", H + "input_layernorm.weight"),
        norm(M + "pre_mlp_layernorm.weight", f"{H}{before_mlp}.weight"),
    ]


def attention(*, bias: bool = False, qk_norm: bool = False) -> list[WeightRule]:
    """Query, key, value and output projections; norms of heads where there are some."""
    to_qkv, to_out = M + "self_attention.linear_qkv.", M + "self_attention.linear_proj."
    rows = {"q": "query", "k": "key", "v": "key"}
    weights = {
        f"{H}self_attn.{x}_proj.weight": f"{dim} hidden" for x, dim in rows.items()
    }
    biases = {f"{H}self_attn.{x}_proj.bias": dim for x, dim in rows.items()}
    out = {H + "self_attn.o_proj.weight": "hidden query"}
    rules = [
        WeightRule(to_qkv + "weight", weights, COLUMN, MergeQkv()),
        WeightRule(to_out + "weight", out, ROW),
    ]
    if bias:
        rules.append(WeightRule(to_qkv + "bias", biases, COLUMN, MergeQkv()))
    if qk_norm:
        rules += [
            norm(
                f"{M}self_attention.{x}_layernorm.weight",
                f"{H}self_attn.{x}_norm.weight",
                "head",
            )
            for x in "qk"
        ]
    return rules


def mlp(
    megatron: str = "mlp",
    hf: str = "mlp",
    dim: str = "ffn",
    *,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    layers: Literal["all", "dense", "experts"] = "all",
) -> list[WeightRule]:
    """A gated MLP: of a layer, of shared experts, or of the expert ``{expert}``.

    Args:
        megatron: module below the layer.
        hf: module below the layer.
        dim: name of its channels' dimension.
        names: of gate, up and down projection.
        layers: which layers have it.
    """
    gate, up, down = (f"{H}{hf}.{name}.weight" for name in names)
    to = f"{M}{megatron}."
    rows, columns = f"{dim} hidden", f"hidden {dim}"
    return [
        WeightRule(
            to + "linear_fc1.weight",
            {gate: rows, up: rows},
            COLUMN_GATED,
            MergeGateUp(),
            layers,
        ),
        WeightRule(to + "linear_fc2.weight", {down: columns}, ROW, layers=layers),
    ]


def router(hf: str = "mlp.gate") -> WeightRule:
    """The scores of the experts."""
    return WeightRule(
        M + "mlp.router.weight",
        {f"{H}{hf}.weight": "experts hidden"},
        REPLICATED,
        layers="experts",
    )
