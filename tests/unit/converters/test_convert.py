"""Conversions there and back, to the bit, and what they leave when they fail."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_rl.converters.bridge import weights_of
from nemo_rl.converters.convert import (
    HF_PART,
    compare,
    convert,
    dtypes_of,
    open_side,
)
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    return models.save(folder, "qwen3", tied=True, layers=2, hidden=32)


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_there_and_back_is_identical_to_the_bit(tmp_path, family, tied):
    source = models.save(tmp_path / "a", family, tied=tied, layers=3, hidden=32)
    convert(source, tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c", shard_bytes=20_000)
    want, got = tensors(source), tensors(tmp_path / "c")
    want.pop("lm_head.weight") if tied and "lm_head.weight" in want else None
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert value.dtype == got[name].dtype and torch.equal(value, got[name]), name
    assert len(list((tmp_path / "c").glob("model-*.safetensors"))) > 1
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    original = transformers.AutoModelForCausalLM.from_pretrained(source)
    ids = torch.arange(3, 12)[None]
    assert torch.equal(loaded(ids).logits, original(ids).logits)


def test_another_dtype_rounds_once_and_is_declared(source, tmp_path):
    convert(source, tmp_path / "b", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "b" / HF_PART / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    convert(tmp_path / "b", tmp_path / "c")
    for name, value in tensors(source).items():
        assert torch.equal(value.bfloat16(), tensors(tmp_path / "c")[name]), name


def test_several_dtypes_are_not_rounded_to_one_in_silence(source, tmp_path):
    values = tensors(source)
    name = "model.layers.0.self_attn.q_proj.weight"
    values[name] = values[name].bfloat16()
    folder = models.save(tmp_path / "a", "qwen3", tied=True, layers=2, hidden=32)
    save_file(values, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigurationError, match="bfloat16 and float32 .*--dtype"):
        convert(folder, tmp_path / "b")
    convert(folder, tmp_path / "b", dtype=torch.float32)
    convert(tmp_path / "b", tmp_path / "c")
    assert torch.equal(tensors(tmp_path / "c")[name], values[name].float())


def test_progress_counts_every_byte_that_is_written_and_compared(source, tmp_path):
    counted = []
    convert(source, tmp_path / "b", progress=counted.append)
    assert sum(counted) == 2 * 4 * sum(v.numel() for v in tensors(source).values())


def test_a_target_that_exists_is_left_alone(source, tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigurationError, match="exists already"):
        convert(source, tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_comparing_finds_one_bit_and_a_nan_equals_itself(source, tmp_path):
    values = tensors(source)
    name = "model.layers.1.mlp.down_proj.weight"
    values[name][0, 0] = float("nan")
    folder = tmp_path / "a"
    models.save(folder, "qwen3", tied=True, layers=2, hidden=32)
    save_file(values, folder / "model.safetensors", {"format": "pt"})
    one, spec = open_side(folder)
    weights = weights_of(spec)
    plan = list(zip(weights, dtypes_of(one, weights, None), strict=True))
    compare(one, open_side(folder)[0], plan)
    with pytest.raises(CheckpointError, match=f"{name} differs .* 1 of"):
        compare(one, open_side(source)[0], plan)


def test_a_checkpoint_without_configuration_asks_for_it(source, tmp_path):
    convert(source, tmp_path / "b")
    (tmp_path / "b" / HF_PART / "config.json").unlink()
    with pytest.raises(ConfigurationError, match="--config FOLDER"):
        convert(tmp_path / "b", tmp_path / "c")
    convert(tmp_path / "b", tmp_path / "c", config=source)
    assert torch.equal(
        tensors(tmp_path / "c")["model.norm.weight"],
        tensors(source)["model.norm.weight"],
    )


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="nowhere is not a folder"):
        convert(tmp_path / "nowhere", tmp_path / "b")
