"""Qwen2-MoE (shared expert with a gate) and Qwen3-MoE (norms on queries and keys)."""

from __future__ import annotations

from typing import Any

from nemo_rl.converters.families import common
from nemo_rl.converters.families.common import H, M
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec, Moe
from nemo_rl.converters.rules import WeightRule
from nemo_rl.converters.transforms import REPLICATED

QWEN2, QWEN3 = "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"
ARCHITECTURES = (QWEN2, QWEN3)


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(
        architecture, attention_bias=False, use_sliding_window=False, hidden_act="silu"
    )
    kv_heads = 16 if architecture == QWEN2 else 4
    fields = common.common_fields(config, architecture, kv_heads=kv_heads)
    shared: dict[str, Any] = {}
    if architecture == QWEN2:
        config.expect(architecture, qkv_bias=True)
        size = config.integer("shared_expert_intermediate_size")
        shared = {"shared_ffn": size, "shared_gate": True}
    step = config.integer("decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers", [])
    layers = range(fields["num_layers"])
    if not isinstance(dense, list) or not all(n in layers for n in dense):
        raise config.error(f"mlp_only_layers={dense!r}, expected a list of layers")
    moe = Moe(
        experts=config.integer(
            "num_experts" if config.get("num_experts") else "num_local_experts"
        ),
        top_k=config.integer("num_experts_per_tok"),
        ffn=config.integer("moe_intermediate_size"),
        layers=tuple(n not in dense and (n + 1) % step == 0 for n in layers),
        normalise=bool(config.get("norm_topk_prob", False)),
        **shared,
    )
    return ModelSpec(
        **fields,
        rope=config.rope(),
        qkv_bias=architecture == QWEN2,
        qk_norm=architecture == QWEN3,
        moe=moe,
    )


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    found = [
        *common.ends(),
        *common.layer_norms(),
        *common.attention(bias=spec.qkv_bias, qk_norm=spec.qk_norm),
        *common.mlp(layers="dense"),
        common.router(),
        *common.mlp(
            "mlp.experts.{expert}",
            "mlp.experts.{expert}",
            "expert_ffn",
            layers="experts",
        ),
    ]
    if spec.moe is not None and spec.moe.shared_gate:
        gate = {H + "mlp.shared_expert_gate.weight": "1 hidden"}
        found += common.mlp(
            "mlp.shared_experts", "mlp.shared_expert", "shared_ffn", layers="experts"
        )
        found.append(
            WeightRule(
                M + "mlp.shared_experts.gate_weight", gate, REPLICATED, layers="experts"
            )
        )
    return found
