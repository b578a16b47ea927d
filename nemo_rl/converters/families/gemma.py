"""Gemma 2 and 3 (text): sandwich norms, sliding layers, bounded scores."""

from __future__ import annotations

from nemo_rl.converters.families import common
from nemo_rl.converters.families.common import H, M
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec, Rope
from nemo_rl.converters.rules import WeightRule

GEMMA2, GEMMA3 = "Gemma2ForCausalLM", "Gemma3ForCausalLM"
ARCHITECTURES = (GEMMA2, GEMMA3)
_KINDS = ("sliding_attention", "full_attention")


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(
        architecture,
        attention_bias=False,
        use_bidirectional_attention=False,
        hidden_activation="gelu_pytorch_tanh",
    )
    fields = common.common_fields(config, architecture, kv_heads=4, head_dim=256)
    bounds = (50.0, 30.0) if architecture == GEMMA2 else (None, None)
    fields["tied"] = bool(config.get("tie_word_embeddings", True))
    pattern = 2 if architecture == GEMMA2 else _pattern(config)
    kinds = config.layer_kinds("layer_types", _KINDS) or [
        _KINDS[(layer + 1) % pattern == 0] for layer in range(fields["num_layers"])
    ]
    rope, local_rope = config.rope(), None
    if architecture == GEMMA3:
        rope, local_rope = _ropes(config)
    return ModelSpec(
        **fields,
        rope=rope,
        local_rope=local_rope,
        qk_norm=architecture == GEMMA3,
        activation="gelu",
        window=config.integer("sliding_window", 4096),
        sliding=tuple(kind == "sliding_attention" for kind in kinds),
        attention_scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=config.optional("attn_logit_softcapping", bounds[0]),
        final_softcap=config.optional("final_logit_softcapping", bounds[1]),
        sandwich_norms=True,
        offset_norms=True,
        scaled_embedding=True,
    )


def _pattern(config: HfConfig) -> int:
    name = "sliding_window_pattern"
    return config.integer(name if config.get(name) else f"_{name}", 6)


def _ropes(config: HfConfig) -> tuple[Rope, Rope]:
    """Rotation of the full and of the sliding layers."""
    if "sliding_attention" in config.get("rope_parameters", {}):
        full = config.rope("full_attention", 1e6)
        return full, config.rope("sliding_attention", 1e4)
    local = Rope(config.number("rope_local_base_freq", 1e4))
    return config.rope(theta=1e6), local


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    return [
        *common.ends(),
        *common.layer_norms("pre_feedforward_layernorm"),
        *common.attention(qk_norm=spec.qk_norm),
        *common.mlp(),
        common.norm(
            M + "self_attention.linear_proj.post_layernorm.weight",
            H + "post_attention_layernorm.weight",
        ),
        common.norm(
            M + "mlp.linear_fc2.post_layernorm.weight",
            H + "post_feedforward_layernorm.weight",
        ),
    ]
