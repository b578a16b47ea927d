"""Megatron's configuration of a model: its shape, its experts, its attention."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import (
    MLATransformerConfig,
    TransformerConfig,
)
from torch import Tensor
from torch.nn.functional import gelu, silu

from nemo_rl.backends.platform import Platform
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.utils.exceptions import ConfigurationError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _gelu_tanh(x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


_ACTIVATIONS = {"silu": silu, "gelu": _gelu_tanh}


def transformer_config(
    spec: ModelSpec, policy: PolicyConfig, platform: Platform
) -> TransformerConfig:
    """Megatron's configuration of the model under the policy's layout.

    Raises:
        ConfigurationError: the layout does not fit the model.
    """
    megatron = policy.megatron_cfg
    dtype = _DTYPES[policy.precision]
    recompute: dict[str, Any] = {}
    if megatron.activation_checkpointing:
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    fields: dict[str, Any] = {
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_hidden_size,
        "num_attention_heads": spec.num_heads,
        "num_query_groups": spec.num_kv_heads,
        "kv_channels": spec.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": spec.norm_eps,
        "layernorm_zero_centered_gamma": spec.offset_norms,
        "gated_linear_unit": True,
        "activation_func": _ACTIVATIONS[spec.activation],
        "add_bias_linear": False,
        "add_qkv_bias": spec.qkv_bias,
        # Between the two steps of latent attention lies a norm, always.
        "qk_layernorm": spec.qk_norm or spec.mla is not None,
        "softmax_scale": spec.attention_scale,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bf16": dtype is torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "tensor_model_parallel_size": megatron.tensor_model_parallel_size,
        "pipeline_model_parallel_size": megatron.pipeline_model_parallel_size,
        "expert_model_parallel_size": megatron.expert_model_parallel_size,
        "expert_tensor_parallel_size": 1,
        # The loss is a share of a sum: Megatron must neither average nor rescale it.
        "calculate_per_token_loss": True,
        **_window_fields(spec),
        **_expert_fields(spec, policy, platform),
        **recompute,
        **platform.transformer_overrides,
    }
    if spec.mla is None:
        return TransformerConfig(**fields)
    return MLATransformerConfig(**{**fields, **_latent_fields(spec)})


def _window_fields(spec: ModelSpec) -> dict[str, Any]:
    if not any(spec.sliding) or spec.window is None:
        return {}
    return {
        "window_size": (spec.window - 1, 0),  # positions to the left, to the right
        "window_attn_skip_freq": [int(sliding) for sliding in spec.sliding],
    }


def _expert_fields(
    spec: ModelSpec, policy: PolicyConfig, platform: Platform
) -> dict[str, Any]:
    moe, parallel = spec.moe, policy.megatron_cfg.expert_model_parallel_size
    if moe is None:
        if parallel > 1:
            raise ConfigurationError(
                f"policy.megatron_cfg.expert_model_parallel_size={parallel}, but "
                f"{spec.architecture} has no experts. Set it to 1."
            )
        return {}
    if moe.experts % parallel:
        raise ConfigurationError(
            f"policy.megatron_cfg.expert_model_parallel_size={parallel} does not "
            f"divide the {moe.experts} experts of the model"
        )
    if policy.megatron_cfg.tensor_model_parallel_size > 1:
        raise ConfigurationError(
            "policy.megatron_cfg.tensor_model_parallel_size="
            f"{policy.megatron_cfg.tensor_model_parallel_size}, but {spec.architecture}"
            " has experts, which Megatron trains under tensor parallelism only with "
            "sequence_parallel, which is not available. Set it to 1 and use "
            "expert_model_parallel_size and pipeline_model_parallel_size."
        )
    uses_te = platform.layer_spec == "te"
    return {
        "num_moe_experts": moe.experts,
        "moe_ffn_hidden_size": moe.ffn,
        "moe_layer_freq": [int(x) for x in moe.layers] if spec.mixed else 1,
        "moe_router_topk": moe.top_k,
        "moe_router_pre_softmax": not moe.normalise and not moe.sigmoid,
        "moe_router_score_function": "sigmoid" if moe.sigmoid else "softmax",
        "moe_router_enable_expert_bias": moe.bias,
        # Moved by the load of experts, the bias would drift away from the weights.
        "moe_router_bias_update_rate": policy.megatron_cfg.moe_router_bias_update_rate,
        "moe_router_num_groups": moe.groups,
        "moe_router_group_topk": moe.group_top_k,
        "moe_router_topk_scaling_factor": moe.scaling if moe.scaling != 1.0 else None,
        "moe_router_dtype": policy.megatron_cfg.moe_router_dtype or "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_shared_expert_intermediate_size": moe.shared_ffn or None,
        "moe_shared_expert_gate": moe.shared_gate,
        "moe_token_dispatcher_type": (
            policy.megatron_cfg.moe_token_dispatcher_type or "alltoall"
        ),
        "moe_permute_fusion": policy.megatron_cfg.moe_permute_fusion,
        "moe_grouped_gemm": uses_te,
    }


def _latent_fields(spec: ModelSpec) -> dict[str, Any]:
    mla, rope = spec.mla, spec.rope
    assert mla is not None
    yarn = dict(rope.yarn)
    if yarn:
        yarn["original_max_position_embeddings"] = int(
            yarn["original_max_position_embeddings"]
        )
    return {
        "q_lora_rank": mla.q_rank,
        "kv_lora_rank": mla.kv_rank,
        "qk_head_dim": mla.nope_dim,
        "qk_pos_emb_head_dim": mla.rope_dim,
        "v_head_dim": mla.v_dim,
        "rope_type": "yarn" if rope.kind == "yarn" else "rope",
        "rotary_base": rope.theta,
        "rotary_scaling_factor": rope.factor,
        **yarn,
    }
