"""Phi-3 and Phi-4: Llama whose projections are stored together."""

from __future__ import annotations

from nemo_rl.converters.families import common
from nemo_rl.converters.families.common import H, M
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import WeightRule
from nemo_rl.converters.transforms import COLUMN, COLUMN_GATED, ROW, InterleaveQkv

ARCHITECTURES = ("Phi3ForCausalLM",)


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(
        architecture, attention_bias=False, hidden_act="silu", use_sliding_window=False
    )
    fields = common.common_fields(config, architecture, norm_eps=1e-5)
    if config.get("sliding_window"):
        fields["window"] = config.integer("sliding_window")
        fields["sliding"] = (True,) * fields["num_layers"]
    return ModelSpec(**fields, rope=config.rope())


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    qkv = {H + "self_attn.qkv_proj.weight": "qkv hidden"}
    out = {H + "self_attn.o_proj.weight": "hidden query"}
    gate_up = {H + "mlp.gate_up_proj.weight": "gate_up hidden"}
    down = {H + "mlp.down_proj.weight": "hidden ffn"}
    return [
        *common.ends(),
        *common.layer_norms(),
        WeightRule(
            M + "self_attention.linear_qkv.weight", qkv, COLUMN, InterleaveQkv()
        ),
        WeightRule(M + "self_attention.linear_proj.weight", out, ROW),
        WeightRule(M + "mlp.linear_fc1.weight", gate_up, COLUMN_GATED),
        WeightRule(M + "mlp.linear_fc2.weight", down, ROW),
    ]
