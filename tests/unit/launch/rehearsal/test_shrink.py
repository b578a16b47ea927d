"""Tests of small models: every family's is one that transformers makes and we read."""

from __future__ import annotations

import json

import pytest
import transformers

from nemo_rl.converters.families import model_spec
from nemo_rl.launch.rehearsal.shrink import LAYERS, shrink
from tests.fakes.models import EVERY_FAMILY

SIZES = {"num_hidden_layers", "hidden_size", "intermediate_size", "head_dim"} | {
    "num_attention_heads",
    "num_key_value_heads",
}


def full_config(family: str) -> dict:
    """The configuration that transformers takes for the family's usual size."""
    kind, extra = EVERY_FAMILY[family]
    made = getattr(transformers, f"{kind}Config")
    full = json.loads(made(vocab_size=131).to_json_string(use_diff=False))
    # What has no usual value, and how positions are encoded.
    wanted = {k: v for k, v in extra.items() if full.get(k) is None or "rope" in k}
    name = kind.removesuffix("Text") + "ForCausalLM"
    return full | wanted | {"architectures": [name], "pad_token_id": None}


@pytest.mark.parametrize("family", sorted(EVERY_FAMILY))
def test_a_small_model_of_every_family_is_made_and_read(family):
    full = full_config(family)
    small = shrink(full)
    assert small["num_hidden_layers"] == LAYERS < full["num_hidden_layers"]
    assert small["vocab_size"] == full["vocab_size"]
    kind = getattr(transformers, f"{EVERY_FAMILY[family][0]}Config")
    made = transformers.AutoModelForCausalLM.from_config(kind(**small))
    assert sum(weight.numel() for weight in made.parameters()) < 500_000
    spec = model_spec(small)
    # Two processes can share it.
    assert spec.num_heads % 2 == 0
    assert spec.num_layers % 2 == 0


def test_what_is_not_a_size_stays():
    full = full_config("qwen3_moe")
    small = shrink(full)
    changed = {key for key in full if full[key] != small[key]}
    assert changed <= SIZES | {
        "moe_intermediate_size",
        "num_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "max_window_layers",
    }
    assert shrink(small) == small


def test_groups_of_heads_stay_groups():
    def heads(number, groups):
        small = shrink({"num_attention_heads": number, "num_key_value_heads": groups})
        return small["num_attention_heads"], small["num_key_value_heads"]

    assert heads(32, 8) == (4, 2)
    assert heads(32, 32) == (4, 4)
    assert heads(32, 1) == (4, 1)
    assert heads(9, 3) == (4, 2)
    assert heads(2, 1) == (2, 1)


def test_kinds_of_layers_and_factors_of_positions_are_shortened():
    small = shrink(
        {
            "num_hidden_layers": 12,
            "layer_types": [*["near"] * 5, "far"] * 2,
            "mlp_only_layers": [1, 7],
            "head_dim": 128,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64},
        }
    )
    assert small["layer_types"] == ["near", "far"]
    assert small["mlp_only_layers"] == [1]
    assert small["rope_scaling"] == {"type": "longrope", "short_factor": [1.0] * 8}
