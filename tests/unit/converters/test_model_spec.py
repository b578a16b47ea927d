"""Reading config.json: both spellings of transformers, and what is refused."""

from __future__ import annotations

import json

import pytest

from nemo_rl.converters.hf import HfWeights
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def without(*keys):
    return {key: value for key, value in LLAMA.items() if key not in keys}


def test_spec_reads_every_field():
    spec = model_spec(LLAMA)
    assert (spec.family, spec.num_layers, spec.hidden_size) == ("llama", 2, 64)
    assert (spec.ffn_hidden_size, spec.num_heads, spec.num_kv_heads) == (96, 8, 4)
    assert (spec.head_dim, spec.vocab_size, spec.max_positions) == (8, 131, 256)
    assert (spec.norm_eps, spec.rope_theta) == (1e-5, 500000.0)
    assert spec.rope_scaling_factor is None
    assert (spec.tied, spec.qkv_bias, spec.qk_norm) == (True, False, False)


def test_spec_of_the_other_families():
    assert model_spec(QWEN2).qkv_bias and not model_spec(QWEN2).qk_norm
    qwen3 = model_spec({**LLAMA, "architectures": ["Qwen3ForCausalLM"]})
    assert qwen3.qk_norm and not qwen3.qkv_bias


def test_spec_defaults_of_absent_fields():
    spec = model_spec(
        without("num_key_value_heads", "tie_word_embeddings", "rope_theta")
    )
    assert (spec.num_kv_heads, spec.tied, spec.rope_theta) == (8, False, 10000.0)


def test_spec_takes_a_head_size_of_its_own():
    assert model_spec({**LLAMA, "head_dim": 32}).head_dim == 32


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_are_those_that_transformers_writes(tmp_path, family, tied):
    models.save(tmp_path / family, family, tied=tied)
    spec = model_spec(read_hf_config(tmp_path / family))
    with HfWeights(tmp_path / family) as weights:
        assert weights.shapes
        for name, shape in weights.shapes.items():
            assert spec.hf_shape(name) == shape, name


def test_matmul_parameters_are_the_matrices_of_the_model(tmp_path):
    models.save(tmp_path, "qwen3", tied=False)
    spec = model_spec(read_hf_config(tmp_path))
    with HfWeights(tmp_path) as weights:
        sizes = [
            shape[0] * shape[1]
            for name, shape in weights.shapes.items()
            if len(shape) == 2 and "embed_tokens" not in name
        ]
    assert spec.matmul_parameters == sum(sizes)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_spec_of_what_transformers_writes(tmp_path, family):
    """config.json as the installed transformers saves it."""
    config = models.tiny_config(family, tied=True, layers=2)
    config.architectures = [f"{family.capitalize()}ForCausalLM"]
    config.save_pretrained(tmp_path)
    spec = model_spec(read_hf_config(tmp_path))
    assert (spec.family, spec.vocab_size, spec.tied) == (family, 131, True)
    assert (spec.rope_theta, spec.rope_scaling_factor) == (10000.0, None)


def test_rope_of_transformers_5_and_4():
    scaled = {**LLAMA3_ROPE, "rope_theta": 1e4}
    new = model_spec({**without("rope_theta"), "rope_parameters": scaled})
    assert (new.rope_theta, new.rope_scaling_factor) == (1e4, 8.0)
    old = model_spec({**LLAMA, "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0}})
    assert (old.rope_theta, old.rope_scaling_factor) == (500000.0, 32.0)
    plain = {"rope_type": "default", "rope_theta": 2e4}
    assert model_spec({**LLAMA, "rope_parameters": plain}).rope_theta == 2e4


@pytest.mark.parametrize(
    ("size", "divisor", "padded"), [(131, 1, 131), (131, 2, 132), (128, 4, 128)]
)
def test_padded_vocab(size, divisor, padded):
    assert model_spec({**LLAMA, "vocab_size": size}).padded_vocab(divisor) == padded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*Supported: Llama"),
        ({"architectures": []}, r"architectures=\[\]"),
        ({"architectures": None}, "architectures=None"),
        ({"attention_bias": True}, "attention_bias=True is not covered by the llama"),
        ({"mlp_bias": True}, "mlp_bias=True is not covered"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not covered"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_size": "64"}, "hidden_size='64', expected a positive integer"),
        ({"vocab_size": 0}, "vocab_size=0, expected a positive integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers=None"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"intermediate_size": 9.5}, "intermediate_size=9.5"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads='2', expected a positive"),
        ({"head_dim": -1}, "head_dim=-1, expected a positive integer"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings='x'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small', expected a positive number"),
        ({"rope_theta": "high"}, "rope_theta='high', expected a positive number"),
        ({"rope_scaling": "yarn"}, "'yarn', expected an object with rope_type"),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "factor": None}},
            "factor=None, expected a positive number",
        ),
        ({"architectures": "LlamaForCausalLM"}, "architectures='LlamaForCausalLM'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'.*'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "not supported"),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 2.0}},
            "'low_freq_factor': 2.0.*not supported",
        ),
        (
            {"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 8.0}},
            "not supported",
        ),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": 4096}},
            "not supported",
        ),
    ],
)
def test_spec_refuses_what_the_rules_do_not_cover(change, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        model_spec({**LLAMA, **change}, source="somewhere/config.json")
    assert "somewhere/config.json" in str(caught.value)


def test_qwen2_may_say_that_it_has_attention_biases():
    assert model_spec({**QWEN2, "attention_bias": True}).qkv_bias
    with pytest.raises(ConfigurationError, match="use_sliding_window"):
        model_spec({**QWEN2, "use_sliding_window": True})


def test_read_config_errors(tmp_path):
    with pytest.raises(ConfigurationError, match="has no config.json. Point policy"):
        read_hf_config(tmp_path)
    file = tmp_path / "config.json"
    file.mkdir()
    with pytest.raises(ConfigurationError, match="config.json cannot be read"):
        read_hf_config(tmp_path)
    file.rmdir()
    file.write_text("{")
    with pytest.raises(ConfigurationError, match="is not valid JSON"):
        read_hf_config(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not valid JSON"):
        read_hf_config(tmp_path)
    file.write_text("[1]")
    with pytest.raises(ConfigurationError, match="holds list, not an object"):
        read_hf_config(tmp_path)
    file.write_text(json.dumps(LLAMA))
    assert read_hf_config(tmp_path) == LLAMA
