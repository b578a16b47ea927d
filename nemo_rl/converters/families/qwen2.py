"""Qwen2 and Qwen2.5: Llama with biases on query, key and value."""

from __future__ import annotations

from nemo_rl.converters.families import common
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import WeightRule

ARCHITECTURES = ("Qwen2ForCausalLM",)


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(architecture, use_sliding_window=False, hidden_act="silu")
    fields = common.common_fields(config, architecture, kv_heads=32)
    return ModelSpec(**fields, rope=config.rope(), qkv_bias=True)


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    return [
        *common.ends(),
        *common.layer_norms(),
        *common.attention(bias=True),
        *common.mlp(),
    ]
