"""DeepSeek-V2 and V3: latent attention, shared experts, dense first layers."""

from __future__ import annotations

from typing import Any

from nemo_rl.converters.families import common
from nemo_rl.converters.families.common import H, M
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import Mla, ModelSpec, Moe, Rope
from nemo_rl.converters.rules import WeightRule
from nemo_rl.converters.transforms import COLUMN, REPLICATED, ROW

V2, V3 = "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"
ARCHITECTURES = (V2, V3)


def read(config: HfConfig, architecture: str) -> ModelSpec:
    """The model of a configuration; see ``families.model_spec``."""
    config.expect(
        architecture,
        attention_bias=False,
        mlp_bias=False,
        hidden_act="silu",
        rope_interleave=True,
        moe_layer_freq=1,
        norm_topk_prob=architecture == V3,
    )
    fields = common.common_fields(config, architecture)
    q_rank = config.values.get("q_lora_rank", 1536)
    mla = Mla(
        q_rank=None if q_rank is None else config.integer("q_lora_rank", 1536),
        kv_rank=config.integer("kv_lora_rank"),
        nope_dim=config.integer("qk_nope_head_dim"),
        rope_dim=config.integer("qk_rope_head_dim"),
        v_dim=config.integer("v_head_dim"),
    )
    moe = _experts(config, architecture, fields["num_layers"])
    # These hold for a head's own keys, which latent attention has not.
    fields["num_kv_heads"] = fields["num_heads"]
    fields["head_dim"] = mla.nope_dim + mla.rope_dim
    return ModelSpec(**fields, rope=_rope(config), mla=mla, moe=moe)


def _experts(config: HfConfig, architecture: str, layers: int) -> Moe:
    top_k, ffn = (
        config.integer("num_experts_per_tok"),
        config.integer("moe_intermediate_size"),
    )
    groups: dict[str, Any] = {}
    limited = config.get("topk_method", "noaux_tc") != "greedy"
    count = config.integer("n_group", 8 if architecture == V3 else 1)
    if limited and count > 1:
        group_top_k = config.integer("topk_group", 4)
        groups = {"groups": count, "group_top_k": group_top_k}
        # Megatron ranks a group by its best top_k / group_top_k experts.
        best = 2 if architecture == V3 else 1
        if top_k != best * group_top_k:
            raise config.error(
                f"num_experts_per_tok={top_k} with topk_group={group_top_k}: "
                f"{architecture} ranks a group by its best {best}, Megatron by "
                f"num_experts_per_tok / topk_group, so only {best * group_top_k} "
                "experts per token give the same model"
            )
    dense = config.get("first_k_dense_replace", 3 if architecture == V3 else 0)
    return Moe(
        experts=config.integer("n_routed_experts"),
        top_k=top_k,
        ffn=ffn,
        layers=tuple(layer >= dense for layer in range(layers)),
        normalise=architecture == V3,
        sigmoid=architecture == V3,
        bias=architecture == V3,
        scaling=config.number(
            "routed_scaling_factor", 2.5 if architecture == V3 else 1.0
        ),
        shared_ffn=ffn * config.integer("n_shared_experts"),
        **groups,
    )


def _rope(config: HfConfig) -> Rope:
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "yarn":
        return config.rope()
    fields = HfConfig({**config.values, **scaling}, config.source)
    names = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    yarn = {name: float(scaling.get(name, value)) for name, value in names.items()}
    original = "original_max_position_embeddings"
    yarn[original] = float(fields.integer(original, 4096))
    return Rope(
        fields.number("rope_theta", 1e4),
        "yarn",
        fields.number("factor"),
        yarn=tuple(sorted(yarn.items())),
    )


def rules(spec: ModelSpec) -> list[WeightRule]:
    """One rule per weight."""
    to, of = M + "self_attention.", H + "self_attn."

    def linear(megatron: str, hf: str, dims: str, shard: Any = COLUMN) -> WeightRule:
        return WeightRule(f"{to}{megatron}.weight", {f"{of}{hf}.weight": dims}, shard)

    queries = [linear("linear_q_proj", "q_proj", "mla_query hidden")]
    if spec.mla is not None and spec.mla.q_rank is not None:
        queries = [
            linear("linear_q_down_proj", "q_a_proj", "q_rank hidden"),
            common.norm(
                to + "q_layernorm.weight", of + "q_a_layernorm.weight", "q_rank"
            ),
            linear("linear_q_up_proj", "q_b_proj", "mla_query q_rank"),
        ]
    found = [
        *common.ends(),
        *common.layer_norms(),
        *queries,
        linear("linear_kv_down_proj", "kv_a_proj_with_mqa", "latent hidden"),
        common.norm(
            to + "kv_layernorm.weight", of + "kv_a_layernorm.weight", "kv_rank"
        ),
        linear("linear_kv_up_proj", "kv_b_proj", "mla_key_value kv_rank"),
        linear("linear_proj", "o_proj", "hidden mla_value", ROW),
        *common.mlp(layers="dense"),
        common.router(),
        *common.mlp(
            "mlp.experts.{expert}",
            "mlp.experts.{expert}",
            "expert_ffn",
            layers="experts",
        ),
        *common.mlp(
            "mlp.shared_experts", "mlp.shared_experts", "shared_ffn", layers="experts"
        ),
    ]
    if spec.moe is not None and spec.moe.bias:
        bias = {H + "mlp.gate.e_score_correction_bias": "experts"}
        found.append(
            WeightRule(
                M + "mlp.router.expert_bias",
                bias,
                REPLICATED,
                layers="experts",
                keeps_dtype=True,
            )
        )
    return found
