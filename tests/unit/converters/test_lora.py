"""Merging adapters; that peft gives the same is tests/functional's matter."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.converters.lora import lora_merge, merged
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models

PREFIX = "base_model.model."
Q = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", layers=2, hidden=32)


@pytest.fixture
def adapter(tmp_path):
    return written(tmp_path / "adapter", {})


def written(folder, more, **fields):
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{PREFIX}{Q}.lora_A.weight": torch.randn(2, 32, generator=generator),
        f"{PREFIX}{Q}.lora_B.weight": torch.randn(32, 2, generator=generator),
        **{PREFIX + name: tensor for name, tensor in more.items()},
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_a_product_is_added_and_rounded_once():
    w = torch.tensor([[1.0, 2.0]]).bfloat16()
    a, b = torch.tensor([[1.0, 2.0**-9]]), torch.tensor([[1.0]])
    assert merged(w, a, b, 1.0).tolist() == [[2.0, 2.0]]
    # Both halves of the sum survive until the end: 2 + 2^-9 + 2^-7 is nearer to 2^-6.
    double = merged(w, torch.tensor([[0.0, 2.0**-7 + 2.0**-9]]), b, 1.0)
    assert double.dtype is torch.bfloat16 and double[0, 1] == 2.0 + 2.0**-6
    assert merged(w.T, a, b, 0.5, transposed=True).tolist() == [[1.5], [2.0]]


def test_only_what_the_adapter_names_changes(base, adapter, tmp_path):
    assert lora_merge(base, adapter, tmp_path / "out") == []
    with HfWeights(base) as before, HfWeights(tmp_path / "out") as after:
        changed = {
            n
            for n in before.names()
            if not torch.equal(before.tensor(n), after.tensor(n))
        }
        assert before.names() == after.names() and changed == {f"{Q}.weight"}
    assert (tmp_path / "out" / "config.json").exists()


def test_notes_name_another_base_and_tokenizer(base, tmp_path):
    adapter = written(tmp_path / "a", {}, base_model_name_or_path="meta/other")
    (adapter / "tokenizer.json").write_text("{}")
    notes = lora_merge(base, adapter, tmp_path / "out")
    assert "its base is meta/other" in notes[0] and "tokenizer.json" in notes[1]
    adapter = written(tmp_path / "b", {}, base_model_name_or_path="some/where/llama")
    assert lora_merge(base, adapter, tmp_path / "out2") == []


def test_tensors_without_a_weight_are_listed(base, tmp_path):
    adapter = written(tmp_path / "a", {"model.layers.7.w.weight": torch.zeros(2)})
    with pytest.raises(
        ConfigurationError, match="does not have: model.layers.7.w.weight"
    ):
        lora_merge(base, adapter, tmp_path / "out")
    adapter = written(tmp_path / "b", {"lm_head.weight": torch.zeros(140, 32)})
    message = r"lm_head.weight is \[131, 32\], the adapter's \[140, 32\]"
    with pytest.raises(ConfigurationError, match=message):
        lora_merge(base, adapter, tmp_path / "out")
    adapter = written(tmp_path / "c", {}, fan_in_fan_out=True)
    with pytest.raises(ConfigurationError, match="exists already"):
        lora_merge(base, adapter, adapter)
    assert not (tmp_path / "out").exists()


def test_tied_ends_become_two_or_are_refused(tmp_path):
    base = models.save(tmp_path / "base", "qwen2", tied=True, layers=2, hidden=32)
    head = {"lm_head.weight": torch.ones(131, 32)}
    (note,) = lora_merge(base, written(tmp_path / "a", head), tmp_path / "out")
    assert "tie_word_embeddings is false" in note
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    with HfWeights(base) as before, HfWeights(tmp_path / "out") as after:
        assert after.tensor("lm_head.weight").eq(1).all()
        name = "model.embed_tokens.weight"
        assert torch.equal(before.tensor(name), after.tensor(name))
    adapter = written(tmp_path / "b", head, ensure_weight_tying=True)
    with pytest.raises(ConfigurationError, match="changes lm_head.weight with ensure"):
        lora_merge(base, adapter, tmp_path / "out2")


def test_quantised_bases_are_refused(base, adapter, tmp_path):
    folder = tmp_path / "quantised"
    folder.mkdir()
    (folder / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    with pytest.raises(ConfigurationError, match="describes quantised weights"):
        lora_merge(folder, adapter, tmp_path / "out")
