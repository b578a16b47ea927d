"""Streamed shards, read by safetensors itself."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from nemo_rl.converters.formats.safetensors_stream import SafetensorsStream

SHAPES = {"a": (4, 3), "b": (), "c": (5,)}


def announced(dtype=torch.float32):
    return [(name, shape, dtype) for name, shape in SHAPES.items()]


def values(dtype):
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_shard(tmp_path, dtype):
    stream = SafetensorsStream(tmp_path, announced(dtype))
    for name, value in values(dtype).items():
        stream.add(name, value)
    written = stream.close()
    assert written == {
        "shards": {"shard-00000.safetensors": ["a", "b", "c"]},
        "bytes": 18 * dtype.itemsize,
    }
    found = load_file(tmp_path / "shard-00000.safetensors")
    assert list(found) == ["a", "b", "c"]
    for name, value in values(dtype).items():
        assert torch.equal(found[name], value) and found[name].dtype is dtype


def test_a_tensor_that_does_not_fit_begins_a_shard(tmp_path):
    stream = SafetensorsStream(tmp_path, announced(), shard_bytes=52)
    for name, value in values(torch.float32).items():
        stream.add(name, value)
    shards = stream.close()["shards"]
    assert list(shards.values()) == [["a", "b"], ["c"]]
    assert set(load_file(tmp_path / "shard-00001.safetensors")) == {"c"}


def test_a_part_of_a_larger_tensor_is_written_alone(tmp_path):
    stream = SafetensorsStream(tmp_path, [("t", (3, 2), torch.float32)])
    whole = torch.arange(6.0).reshape(2, 3)
    stream.add("t", whole.t())
    stream.close()
    found = load_file(tmp_path / "shard-00000.safetensors")["t"]
    assert torch.equal(found, whole.t())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("b", torch.zeros(4, 3)),
        ("a", torch.zeros(3, 4)),
        ("a", torch.zeros(4, 3, dtype=torch.bfloat16)),
    ],
)
def test_what_was_not_announced_is_refused(tmp_path, name, tensor):
    stream = SafetensorsStream(tmp_path, announced())
    with pytest.raises(
        ValueError, match=r"came where \('a', \(4, 3\), torch.float32\)"
    ):
        stream.add(name, tensor)


def test_an_unfinished_stream_does_not_close(tmp_path):
    stream = SafetensorsStream(tmp_path, announced())
    stream.add("a", torch.zeros(4, 3))
    with pytest.raises(ValueError, match="2 tensors have not come"):
        stream.close()
