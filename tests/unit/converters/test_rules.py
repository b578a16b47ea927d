"""Rules cover exactly the weights of real Hugging Face models, family by family."""

from __future__ import annotations

import dataclasses

import pytest


from nemo_rl.converters.families import model_spec
from nemo_rl.converters.families import rules_for
from nemo_rl.converters.rules import canonical_name
from nemo_rl.converters.transforms import COLUMN, REPLICATED, ROW, MergeQkv
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models


@pytest.fixture(scope="module")
def hf_models():
    """(spec, state dict) of a tiny model of every family, tied and untied."""
    found = {}
    for family in models.FAMILIES:
        for tied in (False, True):
            config = models.tiny_config(family, tied=tied, layers=2, hidden=32)
            model = models.build(config)
            described = {**config.to_dict(), "architectures": [type(model).__name__]}
            found[family, tied] = (model_spec(described), model.state_dict())
    return found


CASES = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
FAMILIES = pytest.mark.parametrize("family", models.FAMILIES)


@CASES
@FAMILIES
def test_rules_name_every_weight_once(hf_models, family, tied):
    spec, state = hf_models[family, tied]
    assert (spec.family, spec.tied) == (family, tied)
    named = [name for rule in rules_for(spec).values() for name in rule.hf]
    assert len(named) == len(set(named))
    assert set(named) == set(state) - ({"lm_head.weight"} if tied else set())


@CASES
@FAMILIES
def test_rules_round_trip_every_weight_bit_for_bit(hf_models, family, tied):
    import torch

    spec, state = hf_models[family, tied]
    for rule in rules_for(spec).values():
        parts = [state[name] for name in rule.hf]
        merged = rule.transform.merge(parts, spec)
        shards = [rule.shard.shard(merged, rank, 2) for rank in range(2)]
        back = rule.transform.split(rule.shard.unshard(shards), spec)
        for name, want, got in zip(rule.hf, parts, back, strict=True):
            if "embed" not in name and "lm_head" not in name:  # padded elsewhere
                assert torch.equal(want, got), name


def test_rules_differ_by_family_as_they_should(hf_models):
    bias = "decoder.layers.1.self_attention.linear_qkv.bias"
    norm = "decoder.layers.1.self_attention.q_layernorm.weight"
    rules = {f: rules_for(hf_models[f, False][0]) for f in models.FAMILIES}
    assert bias in rules["qwen2"]
    assert bias not in rules["llama"] and bias not in rules["qwen3"]
    assert norm in rules["qwen3"]
    assert norm not in rules["llama"] and norm not in rules["qwen2"]
    assert rules["qwen2"][bias].hf == tuple(
        f"model.layers.1.self_attn.{x}_proj.bias" for x in "qkv"
    )
    assert rules["qwen2"][bias].shard == COLUMN
    assert isinstance(rules["qwen2"][bias].transform, MergeQkv)
    assert rules["qwen3"][norm].shard == REPLICATED


def test_rules_of_a_tied_model_have_no_output_layer(hf_models):
    assert "output_layer.weight" in rules_for(hf_models["llama", False][0])
    assert "output_layer.weight" not in rules_for(hf_models["llama", True][0])


def test_rule_lists_name_each_megatron_weight_once():
    for rules in (llama.RULES, qwen2.RULES, qwen3.RULES):
        names = [rule.megatron for rule in rules]
        assert len(names) == len(set(names))


def test_rule_at_fills_the_layer_in():
    rule = next(r for r in llama.RULES if r.megatron.endswith("linear_proj.weight"))
    filled = rule.at(3)
    assert filled.megatron == "decoder.layers.3.self_attention.linear_proj.weight"
    assert filled.hf == ("model.layers.3.self_attn.o_proj.weight",)
    assert filled.shard is ROW
    assert rule.at(None) is rule


def test_unknown_family_is_refused(hf_models):
    spec = dataclasses.replace(hf_models["llama", False][0], family="gpt2")
    with pytest.raises(ConfigurationError, match="family 'gpt2'; known: llama, qwen2"):
        rules_for(spec)


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
