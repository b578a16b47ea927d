"""Torch checkpoints there and back; what FSDP2 writes is tests/functional's matter."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from nemo_rl.converters.convert import convert
from nemo_rl.converters.dcp import dcp_to_hf, hf_to_dcp
from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from tests.fakes import models

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    return models.save(folder, "qwen2", tied=True, layers=2, hidden=32)


def contents(folder):
    with HfWeights(folder) as weights:
        return {name: weights.tensor(name) for name in weights.names()}


def equal(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[n], right[n]) for n in left)


def test_there_and_back(source, tmp_path):
    hf_to_dcp(source, tmp_path / "dcp", prefix="policy")
    assert dcp_to_hf(tmp_path / "dcp", tmp_path / "back") == []
    assert equal(contents(source), contents(tmp_path / "back"))
    names = {path.name for path in (tmp_path / "dcp").iterdir()}
    assert names == {".metadata", "__0_0.distcp", "hf"}


def test_dtypes_are_rounded_once(source, tmp_path):
    hf_to_dcp(source, tmp_path / "dcp", dtype=torch.bfloat16)
    dcp_to_hf(tmp_path / "dcp", tmp_path / "back", dtype=torch.float32)
    rounded = {n: t.bfloat16().float() for n, t in contents(source).items()}
    assert equal(rounded, contents(tmp_path / "back"))
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["dtype"] == "float32"


def test_torch_reads_what_is_written(source, tmp_path):
    hf_to_dcp(source, tmp_path / "dcp")
    model = models.build(models.tiny_config("qwen2", tied=True, layers=2, hidden=32), 7)
    state = {"model": model.state_dict()}
    assert "lm_head.weight" in state["model"]
    torch_dcp.load(state, checkpoint_id=tmp_path / "dcp")
    loaded = {n: state["model"][n] for n in contents(source)}
    assert equal(loaded, contents(source))
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "all.pt")
    saved = torch.load(tmp_path / "all.pt", weights_only=True)
    assert saved.keys() == {"model"} and equal(
        {n: saved["model"][n] for n in contents(source)}, contents(source)
    )


def saved(folder, state):
    torch_dcp.save(state, checkpoint_id=folder)
    return folder


def test_an_output_layer_of_its_own_is_not_dropped(source, tmp_path):
    model = contents(source)
    model["lm_head.weight"] = model["model.embed_tokens.weight"] + 1
    folder = saved(tmp_path / "dcp", {"model": model, "step": 3})
    with pytest.raises(CheckpointError, match="lm_head.weight differs .* ties them"):
        dcp_to_hf(folder, tmp_path / "out", config=source)
    model["lm_head.weight"] = model["model.embed_tokens.weight"].clone()
    folder = saved(tmp_path / "dcp2", {"model": model, "step": torch.tensor(3)})
    assert dcp_to_hf(folder, tmp_path / "out", config=source) == ["step"]
    assert equal(contents(source), contents(tmp_path / "out"))


def test_other_shapes_and_dtypes_are_listed(source, tmp_path):
    model = contents(source)
    model["model.norm.weight"] = torch.zeros(31)
    model["model.layers.0.mlp.up_proj.weight"] = torch.zeros(48, 32, dtype=torch.int8)
    folder = saved(tmp_path / "dcp", model)
    message = r"up_proj.weight is torch.int8, .*norm.weight is \[31\], expected \[32\]"
    with pytest.raises(CheckpointError, match=message):
        dcp_to_hf(folder, tmp_path / "out", config=source)


def test_a_cut_file_names_the_tensor(source, tmp_path):
    folder = hf_to_dcp(source, tmp_path / "dcp")
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:20000])
    with pytest.raises(CheckpointError, match="ends at .* The file may be cut"):
        dcp_to_hf(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_folders_say_what_they_are(source, tmp_path):
    with pytest.raises(ConfigurationError, match="has no .metadata. Expected"):
        dcp_to_hf(tmp_path, tmp_path / "out", config=source)
    convert(source, tmp_path / "megatron")
    with pytest.raises(ConfigurationError, match="Use megatron-to-hf"):
        dcp_to_hf(tmp_path / "megatron", tmp_path / "out")


def test_pieces_without_elements_are_passed_over(tmp_path):
    """What a rank has of a tensor with fewer rows than ranks."""
    from nemo_rl.converters.formats.dist_writer import DistCheckpointWriter

    writer = DistCheckpointWriter(tmp_path)
    writer.add_chunk("w", torch.ones(1, 3), (0, 0), (1, 3))
    writer._index.add_chunk("w", (1, 3), torch.float32, ((1, 0), (0, 3)), ("x", 0, 0))
    writer.finish_index()
    assert torch.equal(DistCheckpoint(tmp_path).read("w"), torch.ones(1, 3))
