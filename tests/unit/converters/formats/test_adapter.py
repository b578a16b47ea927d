"""Reading an adapter: every tensor has one use, and what is not covered is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from nemo_rl.converters.formats.adapter import (
    AdapterWeights,
    Change,
    LowRank,
    changes_of,
    is_adapter,
    read_adapter_config,
)
from nemo_rl.utils.exceptions import ConfigurationError

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def pair(module, rank=4):
    return {
        f"{module}.lora_A.weight": (rank, 32),
        f"{module}.lora_B.weight": (16, rank),
    }


def written(folder, **fields):
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **fields}))
    return folder


def test_scale_and_names():
    (change,) = changes_of(PLAIN, pair(Q)).items()
    low = LowRank(f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", 2.0, False)
    assert change == (
        "model.layers.0.self_attn.q_proj.weight",
        Change(saved=None, low_rank=low),
    )


@pytest.mark.parametrize(
    ("fields", "rank", "scale"),
    [
        ({"use_rslora": True}, 4, 4.0),
        ({"rank_pattern": {"q_proj": 2}}, 2, 4.0),
        ({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"layers.0.*": 1}}, 4, 0.25),
        ({"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2}}, 4, 0.5),
        ({"alpha_pattern": {"^layers.0.self_attn.q_proj": 2}}, 4, 2.0),
    ],
)
def test_patterns_are_those_of_peft(fields, rank, scale):
    (change,) = changes_of({**PLAIN, **fields}, pair(Q, rank)).values()
    assert change.low_rank.scale == scale


def test_embeddings_and_saved_modules():
    shapes = {
        "base_model.model.model.embed_tokens.lora_embedding_A": (4, 131),
        "base_model.model.model.embed_tokens.lora_embedding_B": (32, 4),
        "base_model.model.model.embed_tokens.base_layer.weight": (131, 32),
        "base_model.model.lm_head.weight": (131, 32),
    }
    changes = changes_of(PLAIN, shapes)
    embedding = changes["model.embed_tokens.weight"]
    assert embedding.low_rank.transposed and embedding.saved.endswith("layer.weight")
    saved = "base_model.model.lm_head.weight"
    assert changes["lm_head.weight"] == Change(saved=saved)
    assert len(changes) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("peft_type", "IA3"),
        ("lora_bias", True),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("trainable_token_indices", [1]),
        ("something_new", 1),
    ],
)
def test_what_is_not_covered_is_named(tmp_path, field, value):
    written(tmp_path, **{field: value})
    with pytest.raises(ConfigurationError, match=f"{field}=.* Supported: .*rslora"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize("value", ["pissa", "pissa_niter_16", "olora", "loftq"])
def test_starts_that_change_the_base_are_refused(tmp_path, value):
    written(tmp_path, init_lora_weights=value)
    with pytest.raises(ConfigurationError, match="changed the base as well"):
        read_adapter_config(tmp_path)


def test_fields_without_effect_pass(tmp_path):
    fields = {"lora_dropout": 0.1, "use_dora": False, "init_lora_weights": "gaussian"}
    assert read_adapter_config(written(tmp_path, **fields))["lora_dropout"] == 0.1
    assert is_adapter(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "fields", "message"),
    [
        ({}, {}, "holds no tensors"),
        ({f"{Q}.lora_A.weight": (4, 32)}, {}, "Without their .*q_proj.lora_A.weight"),
        ({f"{Q}.lora_magnitude_vector": (4,)}, {}, "not covered: .*magnitude"),
        ({"model.layers.0.w.lora_A.weight": (4, 2)}, {}, "not covered: model.layers.0"),
        (pair(Q, 8), {}, r"q_proj: A \[8, 32\] and B \[16, 8\] for rank 4"),
        (pair(Q), {"rank_pattern": {"[": 4}}, "rank_pattern has '\\['"),
        (pair(Q), {"r": 0}, "r=0 for .*q_proj, expected a positive number"),
        (
            {f"{Q}.lora_A.weight": (4, 3, 3, 3), f"{Q}.lora_B.weight": (8, 4, 1, 1)},
            {},
            "expected A",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(shapes, fields, message):
    with pytest.raises(ConfigurationError, match=message):
        changes_of({**PLAIN, **fields}, shapes)


def test_missing_files_say_what_was_expected(tmp_path):
    with pytest.raises(ConfigurationError, match="has no adapter_config.json"):
        read_adapter_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ConfigurationError, match="not readable JSON"):
        read_adapter_config(tmp_path)
    with pytest.raises(ConfigurationError, match="has no adapter_model.safetensors"):
        AdapterWeights(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    assert AdapterWeights(tmp_path).shapes == {"a": (2,)}
