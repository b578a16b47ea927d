"""What every conversion ends with: room, comparison, order."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters import output
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from tests.fakes import models


@pytest.fixture
def companions(tmp_path):
    return models.save(tmp_path / "source", "llama", layers=1, hidden=32)


def result(companions, values):
    tensors = [(n, tuple(t.shape), t.dtype) for n, t in values.items()]
    return output.HfResult(tensors, values.__getitem__, companions, {"dtype": "x"})


def test_a_folder_is_written_in_shards_compared_and_named(companions, tmp_path):
    values = {"b": torch.randn(3, 2), "a": torch.randn(4).bfloat16()}
    seen = []
    target = tmp_path / "out"
    output.publish_hf(
        target, result(companions, values), shard_bytes=8, progress=seen.append
    )
    with HfWeights(target) as weights:
        assert {n: weights.tensor(n).tolist() for n in weights.names()} == {
            n: t.tolist() for n, t in values.items()
        }
    assert len(list(target.glob("*.safetensors"))) == 2
    assert sum(seen) == 2 * (24 + 8)


def test_what_reads_back_differently_gets_no_name(companions, tmp_path):
    calls = []

    def read(name):
        calls.append(name)
        return torch.full((2,), float(len(calls)))

    changing = output.HfResult([("a", (2,), torch.float32)], read, companions, {})
    with pytest.raises(CheckpointError, match="a differs once .* is read back"):
        output.publish_hf(tmp_path / "out", changing)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_targets_that_exist_or_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="exists already. Remove it"):
        output.check_target(tmp_path, 0)
    with pytest.raises(CheckpointError, match="needs .* TiB, and .* free"):
        output.check_target(tmp_path / "a" / "b", 1 << 60)


def test_same_bits_knows_nan_and_signs():
    nan = torch.tensor([float("nan"), 1.0])
    assert output.same_bits(nan, nan.clone())
    assert not output.same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not output.same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float16))
    assert output.same_bits(torch.tensor(3), torch.tensor(3))


def test_layers_are_sorted_by_number():
    names = ["l.10.w", "l.2.w", "a", "l.2.b", "l"]
    assert sorted(names, key=output.natural) == ["a", "l", "l.2.b", "l.2.w", "l.10.w"]


def test_the_dtype_of_most_elements_is_named():
    tensors = [("a", (3,), torch.float32), ("b", (2, 2), torch.bfloat16)]
    assert output.prevalent(tensors) == "bfloat16"
