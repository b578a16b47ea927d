"""The layers a GPT block is made of: Transformer Engine's, or plain torch.

``torch`` takes megatron-core's local modules and replaces the attention core by
torch's scaled_dot_product_attention. Both kinds give the same checkpoint keys.
"""

from __future__ import annotations

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from nemo_rl.backends.platform.torch_attention import TorchAttention
from nemo_rl.backends.training.megatron.gemma_layers import (
    LocalRopeAttention,
    NormThenAdd,
    OffsetRMSNorm,
)
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

LAYER_SPECS = ("te", "torch")
_POST_NORMS = {
    "self_attn_bda.": "self_attention.linear_proj.post_layernorm.",
    "mlp_bda.": "mlp.linear_fc2.post_layernorm.",
}
"""Checkpoint keys of the norms after attention and MLP, as others spell them."""


def build_block_spec(
    kind: str, spec: ModelSpec, config: TransformerConfig
) -> TransformerBlockSubmodules:
    """The specification of this pipeline stage's layers and of the norm after them.

    Args:
        kind: ``"te"`` or ``"torch"``.
        spec: the model.
        config: Megatron's configuration of it.

    Raises:
        ConfigurationError: unknown kind, or one that cannot be this model.
    """
    if kind not in LAYER_SPECS:
        raise ConfigurationError(
            f"policy.megatron_cfg.layer_spec={kind!r} is not a layer specification; "
            f"expected 'auto', 'te' or 'torch'.{did_you_mean(kind, LAYER_SPECS)}"
        )
    if kind == "te" and spec.attention_softcap is not None:
        raise ConfigurationError(
            f"{spec.architecture} bounds its attention scores, which Transformer "
            "Engine cannot. Set policy.megatron_cfg.layer_spec to 'torch'."
        )
    first = get_transformer_layer_offset(config)
    numbers = range(first, first + get_num_layers_to_build(config))
    layers = [_layer(kind, spec, config, spec.has_experts(n)) for n in numbers]
    return TransformerBlockSubmodules(
        layer_specs=layers, layer_norm=_norm_class(kind, spec)
    )


def _norm_class(kind: str, spec: ModelSpec) -> Any:
    if kind == "te":
        from megatron.core.extensions.transformer_engine import TENorm

        return TENorm
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    return OffsetRMSNorm if spec.offset_norms else WrappedTorchNorm


def _layer(
    kind: str, spec: ModelSpec, config: TransformerConfig, experts: bool
) -> ModuleSpec:
    common: dict[str, Any] = {
        "num_experts": config.num_moe_experts if experts else None,
        "moe_grouped_gemm": config.moe_grouped_gemm,
        "qk_layernorm": config.qk_layernorm,
        "multi_latent_attention": spec.mla is not None,
    }
    if kind == "te":
        layer = get_gpt_layer_with_transformer_engine_spec(**common)
    else:
        layer = get_gpt_layer_local_spec(**common, normalization="RMSNorm")
        _use_torch(layer.submodules, spec, experts)
    parts = layer.submodules
    if spec.local_rope is not None:
        parts.self_attention.module = LocalRopeAttention
    if spec.sandwich_norms:
        norm = {"hidden_size": spec.hidden_size, "eps": spec.norm_eps}
        parts.self_attn_bda = parts.mlp_bda = ModuleSpec(NormThenAdd, params=norm)
        parts.sharded_state_dict_keys_map |= _POST_NORMS
    else:
        parts.self_attn_bda = parts.mlp_bda = get_bias_dropout_add
    return layer


def _use_torch(parts: Any, spec: ModelSpec, experts: bool) -> None:
    """torch's attention, norms of the model's kind, and Transformer Engine's keys."""
    attention = parts.self_attention.submodules
    attention.core_attention = ModuleSpec(
        TorchAttention, params={"softcap": spec.attention_softcap}
    )
    if spec.offset_norms:
        parts.input_layernorm = parts.pre_mlp_layernorm = OffsetRMSNorm
        if spec.qk_norm:
            attention.q_layernorm = attention.k_layernorm = OffsetRMSNorm
    keys = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}
    if spec.mla is not None:
        keys = {
            f"self_attention.{x}_layernorm.": (
                f"self_attention.linear_{x}_up_proj.layer_norm_"
            )
            for x in ("q", "kv")
        }
    if not experts:
        keys["pre_mlp_layernorm."] = "mlp.linear_fc1.layer_norm_"
    parts.sharded_state_dict_keys_map = keys
