"""A model's config.json made small: layers, channels, heads and experts, nothing else.

Vocabulary, positions, kind of attention, activation and ties stay the model's own, so
that code which depends on them runs as it would. Pure; writes no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

LAYERS, HEADS, HEAD_DIM, EXPERTS = 2, 4, 16, 4
"""Layers, heads and experts divide by the two processes that share a model."""
VLLM_HEAD_DIM = 32
"""The narrowest head that vLLM's attention on CPUs knows."""
HIDDEN = HEADS * HEAD_DIM

_AT_MOST = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "moe_intermediate_size": HIDDEN // 2,
    "shared_expert_intermediate_size": HIDDEN // 2,
    "num_hidden_layers": LAYERS,
    "max_window_layers": LAYERS,
    "first_k_dense_replace": 1,
    "num_attention_heads": HEADS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": HEAD_DIM,
    "qk_rope_head_dim": HEAD_DIM // 2,
    "v_head_dim": HEAD_DIM,
}
"""Field -> its greatest value."""
_ROPE = ("rope_scaling", "rope_parameters")


def shrink(config: Mapping[str, Any], *, head_dim: int = HEAD_DIM) -> dict[str, Any]:
    """Return the configuration of a small model of the same kind.

    Args:
        config: parsed ``config.json``; what it has not gets no value here.
        head_dim: channels of an attention head.

    Example:
        >>> shrink({"num_hidden_layers": 32, "vocab_size": 128256})
        {'num_hidden_layers': 2, 'vocab_size': 128256}
    """
    small = dict(config)
    if isinstance(config.get("text_config"), Mapping):
        small["text_config"] = shrink(config["text_config"], head_dim=head_dim)
    for key, most in _AT_MOST.items():
        if _is_number(config.get(key)):
            small[key] = min(config[key], most)
    small |= _heads(config, head_dim)
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int):
        small |= _per_layer(config, small["num_hidden_layers"])
    for key in _ROPE:
        if isinstance(config.get(key), Mapping):
            small[key] = _rope(config[key], small)
    return small


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _heads(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Heads, key-value heads in the same manner, and their width."""
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    found: dict[str, Any] = {}
    if _is_number(heads) and _is_number(groups):
        most = min(heads, HEADS)
        found["num_key_value_heads"] = most if groups == heads else min(groups, 2)
        if most % found["num_key_value_heads"]:
            found["num_key_value_heads"] = 1
    if _is_number(config.get("head_dim")):
        latent = "qk_rope_head_dim" in config
        found["head_dim"] = HEAD_DIM // 2 if latent else width
    if _is_number(heads) and _is_number(config.get("hidden_size")):
        # The width of a head follows from the channels where it is not given.
        found["hidden_size"] = min(heads, HEADS) * width
    return found


def _per_layer(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Lists with an entry for each layer: every kind of layer once, in its order."""
    found: dict[str, Any] = {}
    kinds = config.get("layer_types")
    if isinstance(kinds, Sequence) and kinds:
        each = list(dict.fromkeys(kinds))
        found["layer_types"] = [each[k % len(each)] for k in range(layers)]
    if _is_number(config.get("sliding_window_pattern")):
        found["sliding_window_pattern"] = min(config["sliding_window_pattern"], layers)
    if isinstance(config.get("mlp_only_layers"), Sequence):
        found["mlp_only_layers"] = [k for k in config["mlp_only_layers"] if k < layers]
    return found


def _rope(section: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten factors that are given for every pair of a head's channels."""
    width = small.get("head_dim") or HEAD_DIM
    part = section.get("partial_rotary_factor") or small.get("partial_rotary_factor")
    pairs = int(width * (part or 1)) // 2
    return {
        key: list(value)[:pairs] if isinstance(value, list) else value
        for key, value in section.items()
    }
