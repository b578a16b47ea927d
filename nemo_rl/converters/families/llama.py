"""Llama 2 and 3, models of the same shape (SmolLM2), and dense Mistral."""

from __future__ import annotations

from nemo_rl.converters.families import common
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import WeightRule

MISTRAL = "MistralForCausalLM"
ARCHITECTURES = ("LlamaForCausalLM", MISTRAL)


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(
        architecture,
        attention_bias=False,
        mlp_bias=False,
        use_sliding_window=False,
        hidden_act="silu",
    )
    mistral = architecture == MISTRAL
    kv_heads = 8 if mistral else None
    fields = common.common_fields(config, architecture, kv_heads=kv_heads)
    # transformers reads a Mistral without the field as one of 4096 positions.
    if mistral and config.values.get("sliding_window", 4096):
        fields["window"] = config.integer("sliding_window", 4096)
        fields["sliding"] = (True,) * fields["num_layers"]
    return ModelSpec(**fields, rope=config.rope())


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    return [
        *common.ends(),
        *common.layer_norms(),
        *common.attention(),
        *common.mlp(),
    ]
