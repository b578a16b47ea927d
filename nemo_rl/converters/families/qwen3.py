"""Qwen3 dense: Llama with a norm on each head's queries and keys."""

from __future__ import annotations

from nemo_rl.converters.families import common
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import WeightRule

ARCHITECTURES = ("Qwen3ForCausalLM",)


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(
        architecture, attention_bias=False, use_sliding_window=False, hidden_act="silu"
    )
    fields = common.common_fields(config, architecture, kv_heads=32, head_dim=128)
    return ModelSpec(**fields, rope=config.rope(), qk_norm=True)


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    return [
        *common.ends(),
        *common.layer_norms(),
        *common.attention(qk_norm=True),
        *common.mlp(),
    ]
