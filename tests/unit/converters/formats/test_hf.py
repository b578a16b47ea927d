"""Hugging Face folders: what reading refuses, and shards that transformers reads."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from nemo_rl.converters.formats.hf import (
    INDEX_NAME,
    SINGLE_NAME,
    HfWeights,
    finish_folder,
)
from nemo_rl.converters.formats.safetensors_stream import SafetensorsStream
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models


def sharded(folder, names=("a.safetensors", "b.safetensors")):
    """Two shards with one tensor each, and their index."""
    weight_map = {}
    for number, name in enumerate(names):
        save_file({f"w{number}": torch.full((2, 3), float(number))}, folder / name)
        weight_map[f"w{number}"] = name
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def test_reads_a_single_file(tmp_path):
    save_file({"x": torch.arange(4.0).bfloat16()}, tmp_path / SINGLE_NAME)
    with HfWeights(tmp_path) as weights:
        assert weights.names() == {"x"}
        assert "x" in weights and "y" not in weights
        assert weights.shapes == {"x": (4,)}
        assert weights.tensor("x").dtype == torch.bfloat16
        assert weights.tensor("x").tolist() == [0, 1, 2, 3]


def test_reads_every_shard_of_an_index(tmp_path):
    sharded(tmp_path)
    save_file({"stale": torch.ones(1)}, tmp_path / SINGLE_NAME)
    with HfWeights(tmp_path) as weights:
        assert weights.names() == {"w0", "w1"}
        assert weights.shapes["w1"] == (2, 3)
        assert (weights.tensor("w1") == 1).all()


def test_refuses_a_folder_without_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigurationError, match="neither model.safetensors nor"):
        HfWeights(tmp_path)


def test_refuses_a_missing_shard(tmp_path):
    sharded(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(
        ConfigurationError, match="names the shard b.safetensors, which"
    ):
        HfWeights(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_refuses_a_truncated_file(tmp_path, keep):
    sharded(tmp_path)
    file = tmp_path / "b.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ConfigurationError, match="b.safetensors is not a readable"):
        HfWeights(tmp_path)


@pytest.mark.parametrize(
    "name", ["../b.safetensors", "/etc/passwd", "sub/b.safetensors", ".", 7, None]
)
def test_refuses_an_index_that_leaves_the_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").mkdir()
    for place in (tmp_path, folder / "sub"):
        save_file({"w": torch.ones(1)}, place / "b.safetensors")
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ConfigurationError, match="which is not a file of its"):
        HfWeights(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', "\ufeff{}"])
def test_refuses_an_index_that_is_none(tmp_path, text):
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(ConfigurationError, match="is not a weight index"):
        HfWeights(tmp_path)


def lying(shape, end):
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(24)


@pytest.mark.parametrize(
    "content",
    [
        lying([2, 3], 48),  # data beyond the file
        lying([2, 3], 12),  # fewer bytes than the shape needs
        lying([1 << 40, 1 << 40], 24),  # a product that overflows
        struct.pack("<Q", 1 << 60) + b"{}",  # a header of an exabyte
        struct.pack("<Q", 2) + b"[]",
    ],
    ids=["beyond", "short", "overflow", "huge-header", "no-object"],
)
def test_refuses_a_header_that_lies(tmp_path, content):
    (tmp_path / SINGLE_NAME).write_bytes(content)
    with pytest.raises(ConfigurationError, match="is not a readable safetensors file"):
        HfWeights(tmp_path)


def test_an_honest_hand_written_header_is_read(tmp_path):
    (tmp_path / SINGLE_NAME).write_bytes(lying([2, 3], 24))
    with HfWeights(tmp_path) as weights:
        assert weights.tensor("w").shape == (2, 3)


@pytest.mark.parametrize("shard_bytes", [4 << 30, 8000], ids=["single", "sharded"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_reads_what_is_written(tmp_path, shard_bytes, tied):
    import transformers

    source = models.save(tmp_path / "source", tied=tied, layers=2, hidden=32)
    (source / "tokenizer_config.json").write_text("{}")
    (source / "notes.txt").write_text("not part of a model")
    target = tmp_path / "target"
    target.mkdir()
    with HfWeights(source) as weights:
        written = []
        for stage in range(2):
            names = [n for n in sorted(weights.names()) if ("layers.1" in n) == stage]
            announced = [(n, weights.shapes[n], torch.bfloat16) for n in names]
            prefix = f"stage{stage:03d}"
            stream = SafetensorsStream(target, announced, shard_bytes, prefix)
            for name in names:
                stream.add(name, weights.tensor(name).bfloat16())
            written.append(stream.close())
        finish_folder(
            target, written, source=source, config_changes={"dtype": "bfloat16"}
        )
        files = sorted(p.name for p in target.glob("*.safetensors"))
        count = sum(len(part["shards"]) for part in written)
        assert files == [
            f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
        ]
        assert count == 2 if shard_bytes > 8000 else count > 4
        assert (target / "tokenizer_config.json").exists()
        assert not (target / "notes.txt").exists()
        index = json.loads((target / INDEX_NAME).read_text())
        assert index["metadata"]["total_size"] == sum(p["bytes"] for p in written)
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            target, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert model.dtype == torch.bfloat16
        state = model.state_dict()
        for name in weights.names():
            assert torch.equal(state[name], weights.tensor(name).bfloat16()), name


def test_one_shard_is_a_single_file_without_index(tmp_path):
    source = models.save(tmp_path / "source", layers=1, hidden=32)
    target = tmp_path / "target"
    target.mkdir()
    writer = SafetensorsStream(target, [("w", (2,), torch.float32)])
    writer.add("w", torch.ones(2))
    changes = {"dtype": "float32", "rope_theta": 5e5}
    finish_folder(target, [writer.close()], source=source, config_changes=changes)
    config = json.loads((target / "config.json").read_text())
    assert config.items() >= changes.items()
    assert [p.name for p in target.glob("*.safetensors*")] == [SINGLE_NAME]
    config = json.loads((target / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config
