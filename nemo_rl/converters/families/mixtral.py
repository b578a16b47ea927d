"""Mixtral: Mistral whose layers all have experts."""

from __future__ import annotations

from nemo_rl.converters.families import common
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec, Moe
from nemo_rl.converters.rules import WeightRule

ARCHITECTURES = ("MixtralForCausalLM",)


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(architecture, hidden_act="silu")
    fields = common.common_fields(config, architecture, kv_heads=8, norm_eps=1e-5)
    if config.get("sliding_window"):
        fields["window"] = config.integer("sliding_window")
        fields["sliding"] = (True,) * fields["num_layers"]
    moe = Moe(
        experts=config.integer("num_local_experts"),
        top_k=config.integer("num_experts_per_tok"),
        ffn=fields["ffn_hidden_size"],
        layers=(True,) * fields["num_layers"],
        normalise=True,
    )
    return ModelSpec(**fields, rope=config.rope(theta=1e6), moe=moe)


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    return [
        *common.ends(),
        *common.layer_norms(),
        *common.attention(),
        common.router("block_sparse_moe.gate"),
        *common.mlp(
            "mlp.experts.{expert}",
            "block_sparse_moe.experts.{expert}",
            "expert_ffn",
            names=("w1", "w3", "w2"),
            layers="experts",
        ),
    ]
