"""From a recipe, or a generator's own options, to the settings of an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_rl.backends.generation.vllm.settings import engine_arguments
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.models.generation.vllm_config import (
    VllmConfig,
    settings_of,
    settings_of_policy,
)
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes.tokenizers import character_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    return tmp_path


def policy(folder: Path, **generation: Any) -> PolicyConfig:
    return PolicyConfig.from_mapping(
        {
            "model_name": str(folder),
            "precision": "float32",
            "max_total_sequence_length": 96,
            "hf_config_overrides": {"rope_theta": 1.0},
            "generation_batch_size": 4,
            "generation": {"backend": "vllm", "max_new_tokens": 8, **generation},
        }
    )


def test_a_recipe_arrives(folder: Path) -> None:
    settings = settings_of_policy(
        policy(
            folder,
            temperature=0.5,
            top_p=0.9,
            stop_strings=["x"],
            vllm_cfg={"tensor_parallel_size": 2, "enforce_eager": True},
            vllm_kwargs={"swap_space": 1},
        ),
        None,
        use_gpus=True,
        seed=7,
    )
    assert (settings.model, settings.dtype) == (str(folder), "float32")
    assert (settings.max_model_len, settings.max_new_tokens) == (96, 8)
    assert (settings.temperature, settings.top_p, settings.top_k) == (0.5, 0.9, None)
    assert settings.stop_token_ids == (2,) and settings.stop_strings == ("x",)
    assert settings.with_tokenizer and settings.load_format == "dummy"
    assert settings.processes == 2 and settings.colocated and settings.seed == 7
    assert dict(settings.more) == {"swap_space": 1, "max_num_seqs": 4}
    assert dict(settings.hf_overrides) == {"rope_theta": 1.0}
    # Two layers x keys and values x one head of 32 x 4 bytes.
    assert settings.kv_bytes_per_token == 512


def test_measurements_go_on_past_every_stop(folder: Path) -> None:
    given = policy(folder, ignore_eos=True, stop_strings=["x"], stop_token_ids=[3])
    settings = settings_of_policy(given, None, use_gpus=False)
    assert (settings.stop_token_ids, settings.stop_strings) == ((), ())


def test_sequences_must_fit(folder: Path) -> None:
    given = policy(folder, vllm_cfg={"max_model_len": 64})
    with pytest.raises(ConfigurationError, match="max_model_len=64 is less than"):
        settings_of_policy(given, None, use_gpus=False)


def test_options_of_an_engine_may_be_given_directly(folder: Path) -> None:
    options = {"model_name": str(folder), "gpu_memory_utilization": 0.3}
    settings = settings_of(options, use_gpus=True)
    assert (settings.dtype, settings.max_model_len) == ("bfloat16", 512)
    assert (settings.gpu_memory_utilization, settings.load_format) == (0.3, "auto")
    assert settings_of(settings, use_gpus=True) is settings
    config = VllmConfig(model_name=str(folder), max_model_len=64)
    assert settings_of(config, use_gpus=False).max_model_len == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "set model_name"),
        ({"model_name": "m", "backend": "hf"}, "needs backend 'vllm'"),
        ({"model_name": "m", "gpu_memory_utilisation": 1}, "gpu_memory_utilization"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings_of(options, use_gpus=False)


def test_a_recipes_engine_knows_the_tokenizer_that_there_is(folder, tmp_path) -> None:
    def settings(**policy):
        config = PolicyConfig.from_mapping(
            {"model_name": str(folder), "generation": {"backend": "vllm"}, **policy}
        )
        return settings_of_policy(config, None, use_gpus=False)

    assert not settings().with_tokenizer
    character_tokenizer().save_pretrained(tmp_path / "words")
    other = settings(tokenizer={"name": str(tmp_path / "words")})
    assert other.with_tokenizer
    assert engine_arguments(other)["tokenizer"] == str(tmp_path / "words")
    character_tokenizer().save_pretrained(folder)
    assert settings().with_tokenizer
    assert "tokenizer" not in engine_arguments(settings())


@pytest.mark.parametrize("name", ["logprobs_mode", "seed", "tensor_parallel_size"])
def test_what_is_decided_elsewhere_is_no_further_argument(folder, name) -> None:
    options = {"model_name": str(folder), "vllm_kwargs": {name: 1}}
    with pytest.raises(ConfigurationError, match=f"vllm_kwargs.{name} cannot be set"):
        settings_of(options, use_gpus=False)
