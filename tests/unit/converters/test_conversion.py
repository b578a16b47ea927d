"""What a conversion plans before it writes anything."""

from __future__ import annotations

import os

import pytest
import torch

from nemo_rl.converters.conversion import Conversion, Request
from nemo_rl.converters.convert import convert
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=False, layers=2, hidden=32)


def test_sizes_costs_and_tensors_of_a_plan(source):
    conversion = Conversion(Request(source, dtype=torch.bfloat16))
    assert not conversion.to_hf
    numel = sum(torch.Size(s).numel() for s in conversion.side.weights.shapes.values())
    assert conversion.bytes == 2 * numel
    # The embedding: four bytes of an element in the source, two in the result.
    assert conversion.largest == 131 * 32 * 4
    assert conversion.costs[0] == 131 * 32 * 6
    names = conversion.side.weights.names()
    entries = conversion.tensors(dict.fromkeys(names, "digest"))
    assert set(entries) == names
    assert entries["model.norm.weight"] == {
        "dtype": "bfloat16",
        "shape": [32],
        "bytes": 64,
        "digest": "digest",
    }


def test_the_identity_changes_with_what_matters_and_names_no_path(source, tmp_path):
    first = Conversion(Request(source)).identity()
    assert first == Conversion(Request(source)).identity()
    assert str(source.parent) not in str(first)
    other = Conversion(Request(source, dtype=torch.float16, shard_bytes=9)).identity()
    changed = {name for name in first if first[name] != other[name]}
    assert changed == {"--dtype", "size of a shard"}
    os.utime(source / "model.safetensors", ns=(1, 1))
    touched = Conversion(Request(source)).identity()
    assert {n for n in first if first[n] != touched[n]} == {"files of the source"}


def test_the_way_back_is_planned_from_a_checkpoint(source, tmp_path):
    conversion = Conversion(Request(convert(source, tmp_path / "m")))
    assert conversion.to_hf and conversion.config == tmp_path / "m" / "hf"
    assert set(conversion.identity()["files of the source"]) == {
        ".metadata",
        "__0_0.distcp",
    }


def test_a_tensor_that_two_weights_use_is_an_error(source):
    conversion = Conversion(Request(source))
    weights = [weight for weight, _ in conversion.plan]
    with pytest.raises(ConfigurationError, match="used twice: model.embed_tokens"):
        conversion._account([*weights, weights[0]])
