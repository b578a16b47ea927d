"""Tests of finding a model without its weights and writing a small one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_rl.api.functional import load_recipe
from nemo_rl.launch.rehearsal import model
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes.tokenizers import CHATML, character_tokenizer

RECIPES = Path(__file__).parents[4] / "recipes"
LLAMA8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def llama8b(tmp_path: Path) -> Path:
    """Config.json of the real size, a small tokenizer, and no weights."""
    folder = tmp_path / "llama8b"
    character_tokenizer(CHATML).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(LLAMA8B))
    return folder


def test_a_folder_is_found_with_what_there_is_of_its_weights(llama8b):
    found = model.find(str(llama8b))
    assert found.shape == "LlamaForCausalLM, 32 layers of 4096 channels"
    assert found.weights == "its weights are not here"
    parts = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (llama8b / model.INDEX).write_text(json.dumps({"weight_map": parts}))
    (llama8b / "model-1.safetensors").write_bytes(b"")
    weights = model.find(str(llama8b)).weights
    assert weights == "1 of 2 files of weights are not here (model-2.safetensors)"


def test_a_model_that_is_not_here_names_what_to_fetch(monkeypatch):
    with pytest.raises(ConfigurationError) as caught:
        model.find("nobody/no-such-model")
    said = str(caught.value)
    assert "hf download nobody/no-such-model --include '*.json'" in said
    assert "--stand-in" in said


def test_the_full_size_is_checked(llama8b):
    found = model.find(str(llama8b))
    model.check(found, load_recipe(RECIPES / "grpo_llama8b.yaml"))
    eleven = load_recipe(
        RECIPES / "grpo_llama8b.yaml",
        ["policy.hf_config_overrides={num_hidden_layers: 11}"],
    )
    with pytest.raises(ConfigurationError, match="does not divide the 11 layers"):
        model.check(found, eleven)
    unknown = model.Found("x", llama8b, LLAMA8B | {"architectures": ["New"]}, "")
    with pytest.raises(ConfigurationError, match="does not know"):
        model.check(unknown, load_recipe(RECIPES / "grpo_llama8b.yaml"))


@pytest.mark.parametrize("kind", ["causal", "score"])
def test_the_small_model_loads_with_the_full_ones_tokenizer(llama8b, tmp_path, kind):
    import transformers

    target = tmp_path / "small"
    words = {"rope_theta": 10000.0, "num_labels": 1, "vocab_size": 200}
    small = model.write_small(
        model.find(str(llama8b)), target, kind=kind, overrides=words
    )
    assert (small["num_hidden_layers"], small["rope_theta"]) == (2, 10000.0)
    assert json.loads((target / "config.json").read_text()) == small
    made = getattr(transformers, model._AUTO[kind]).from_pretrained(target)
    assert made.config.vocab_size == 200
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer.chat_template == CHATML
    assert {path.name for path in target.glob("*.safetensors")}
