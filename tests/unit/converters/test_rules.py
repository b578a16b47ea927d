"""Rules: numbers filled in, one per parameter, and the names that ranks use."""

from __future__ import annotations

import pytest

from nemo_rl.converters.model_spec import Moe
from nemo_rl.converters.rules import WeightRule, canonical_name, expand
from nemo_rl.converters.transforms import COLUMN, ROW
from tests.unit.converters.test_model_spec import DENSE, spec

RULE = WeightRule(
    "decoder.layers.{layer}.self_attention.linear_proj.weight",
    {"model.layers.{layer}.self_attn.o_proj.weight": "hidden query"},
    ROW,
)
EXPERT = WeightRule(
    "decoder.layers.{layer}.mlp.experts.{expert}.linear_fc2.weight",
    {"model.layers.{layer}.mlp.experts.{expert}.down.weight": "hidden expert_ffn"},
    ROW,
    layers="experts",
)
OUTPUT = WeightRule("output_layer.weight", {"lm_head.weight": "vocab hidden"}, COLUMN)
MIXED = spec(tied=False, moe=Moe(2, 1, 24, (False, True, True), True))


def test_a_rule_with_its_numbers_filled_in():
    filled = RULE.at(3)
    assert filled.megatron == "decoder.layers.3.self_attention.linear_proj.weight"
    assert list(filled.hf) == ["model.layers.3.self_attn.o_proj.weight"]
    assert filled.shard is ROW
    assert filled.megatron_shape(DENSE) == (64, 128)
    assert list(EXPERT.at(1, 5).hf) == ["model.layers.1.mlp.experts.5.down.weight"]


def test_rules_are_expanded_over_layers_and_experts():
    assert len(expand([RULE], DENSE)) == 3
    names = list(expand([EXPERT], MIXED))
    assert names[0] == "decoder.layers.1.mlp.experts.0.linear_fc2.weight"
    assert len(names) == 4
    dense = WeightRule(RULE.megatron, RULE.hf, ROW, layers="dense")
    assert list(expand([dense], MIXED)) == [RULE.at(0).megatron]


def test_a_tied_model_has_no_output_layer():
    assert not expand([OUTPUT], DENSE)
    assert "output_layer.weight" in expand([OUTPUT], MIXED)


def test_two_rules_for_one_parameter_are_a_mistake():
    with pytest.raises(ValueError, match="two rules for decoder.layers.0"):
        expand([RULE, RULE], DENSE)


@pytest.mark.parametrize(
    ("parameter", "offset", "name"),
    [
        ("module.decoder.layers.0.mlp.linear_fc2.weight", 0, "mlp.linear_fc2.weight"),
        ("module.module.decoder.layers.1.x.weight", 2, "x.weight"),
        (
            "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
            0,
            "input_layernorm.weight",
        ),
        (
            "decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
            4,
            "pre_mlp_layernorm.weight",
        ),
    ],
)
def test_canonical_name_of_a_layer(parameter, offset, name):
    local = 1 if ".1." in parameter else 0
    assert (
        canonical_name(parameter, offset) == f"decoder.layers.{local + offset}.{name}"
    )


def test_canonical_name_outside_the_layers():
    name = "module.embedding.word_embeddings.weight"
    assert canonical_name(name, 7) == "embedding.word_embeddings.weight"
    final = "decoder.final_layernorm.weight"
    assert canonical_name(final, 7) == final


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("mlp.experts.local_experts.1.linear_fc1.weight", "5.linear_fc1.weight"),
        ("mlp.experts.linear_fc2.weight3", "7.linear_fc2.weight"),
    ],
    ids=["one by one", "grouped"],
)
def test_canonical_name_of_an_expert(parameter, expected):
    found = canonical_name(f"decoder.layers.0.{parameter}", 2, 4)
    assert found == f"decoder.layers.2.mlp.experts.{expected}"


def test_canonical_name_of_a_norm_after_attention():
    found = canonical_name("module.decoder.layers.0.self_attn_bda.weight")
    assert found.endswith(".0.self_attention.linear_proj.post_layernorm.weight")
