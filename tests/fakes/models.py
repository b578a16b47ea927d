"""Random tiny models in Hugging Face format, made offline; knows no nemo_rl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

FAMILIES = ("llama", "qwen2", "qwen3")
"""Dense models of one kind of layer, which most tests are happy with."""

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT = {
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 24,
    "head_dim": 4,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
}
_SANDWICH = {"sliding_window": 6, "query_pre_attn_scalar": 24}
EVERY_FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ),
    "llama-linear": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 1e4,
                "factor": 2.0,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen2_moe": (
        "Qwen2Moe",
        {**_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 40},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {**_EXPERTS, "num_experts": 4, "norm_topk_prob": True},
    ),
    "qwen3_moe-mixed": (
        "Qwen3Moe",
        {**_EXPERTS, "num_experts": 4, "mlp_only_layers": [1]},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": (
        "DeepseekV2",
        {
            **_LATENT,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "n_shared_experts": 2,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.5,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **_LATENT,
            "q_lora_rank": 24,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
            "rope_parameters": _YARN,
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            **_SANDWICH,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ("Gemma3Text", {**_SANDWICH, "sliding_window_pattern": 2}),
    "phi3": ("Phi3", {"sliding_window": 6}),
    "phi3-partial": (
        "Phi3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
}
"""Name of a case to transformers' configuration class and its fields."""


def tiny_config(
    family: str,
    *,
    tied: bool = False,
    hidden: int = 64,
    layers: int = 4,
    vocab: int = 131,
    heads: int = 8,
    kv_heads: int = 4,
) -> transformers.PretrainedConfig:
    """A configuration whose 8 heads and 4 kv heads divide by 1, 2 and 4.

    The odd vocabulary makes every TP > 1 layout pad it.

    Args:
        family: a key of ``EVERY_FAMILY``.
        tied: the output layer is the embedding.
        hidden: channels.
        layers: how many.
        vocab: tokens.
        heads: attention heads.
        kv_heads: groups of them; latent attention has none.
    """
    kind, extra = EVERY_FAMILY[family]
    if family not in ("qwen2", "qwen2_moe"):
        extra = {"head_dim": hidden // heads, **extra}
    return getattr(transformers, f"{kind}Config")(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads if kind.startswith("Deepseek") else kv_heads,
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attention_dropout=0.0,
        initializer_range=0.08,
        **extra,
    )


def build(config: transformers.PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    """The Hugging Face model in fp32, with norms and biases away from their defaults.

    Norms of one and biases of zero would hide a weight that was never copied.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return model


def save(folder: Path, family: str = "llama", *, seed: int = 0, **kwargs) -> Path:
    """Write a tiny model to ``folder`` and return it."""
    build(tiny_config(family, **kwargs), seed).save_pretrained(folder)
    return folder
