"""Checkpoints divided anew; that training resumes from them is tests/functional's."""

from __future__ import annotations

import json

import pytest
import torch

from nemo_rl.converters.bridge import weights_of
from nemo_rl.converters.convert import compare, convert, open_side
from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
from nemo_rl.converters.formats.dist_writer import DistCheckpointWriter
from nemo_rl.converters.layout import Layout
from nemo_rl.converters.manifest import check_files, read_manifest
from nemo_rl.converters.reshard import reshard
from nemo_rl.infra.manifest import ManifestError, verify, write_manifest
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", layers=2, hidden=32)


@pytest.fixture(scope="module")
def converted(source):
    convert(source, source.parent / "megatron")
    return source.parent / "megatron"


def test_the_content_stays_and_the_pieces_change(source, converted, tmp_path):
    work = reshard(converted, tmp_path / "out", Layout(tp=2, pp=2))
    assert all("_extra_state" in key for key in work.rest)
    checkpoint = DistCheckpoint(tmp_path / "out")
    assert checkpoint.grid("decoder.layers.mlp.linear_fc2.weight") == (2, 1, 2)
    assert checkpoint.grid("decoder.layers.mlp.linear_fc1.weight") == (2, 4, 1)
    assert checkpoint.tensors["output_layer.weight"].shape == (132, 32)
    files = {path.name for path in (tmp_path / "out").glob("*.distcp")}
    assert files == {f"__{rank}_0.distcp" for rank in range(4)} | {"__0_1.distcp"}
    one, spec = open_side(source)
    two, _ = open_side(tmp_path / "out")
    plan = [(weight, torch.float32) for weight in weights_of(spec)]
    compare(one, two, plan)
    check_files(tmp_path / "out", read_manifest(tmp_path / "out"))


def test_the_way_back_takes_the_padding_away(converted, tmp_path):
    reshard(converted, tmp_path / "wide", Layout(tp=4))
    reshard(tmp_path / "wide", tmp_path / "back", Layout())
    before, after = DistCheckpoint(converted), DistCheckpoint(tmp_path / "back")
    assert before.tensors.keys() == after.tensors.keys()
    assert before.objects == after.objects
    for key in before.tensors:
        assert torch.equal(before.read(key), after.read(key)), key


@pytest.fixture
def training(source, converted, tmp_path):
    """A checkpoint as training writes it, with an optimizer and an unknown entry."""
    step = tmp_path / "step_000002"
    weights = step / "policy" / "weights"
    weights.mkdir(parents=True)
    plain = DistCheckpoint(converted)
    writer = DistCheckpointWriter(weights)
    for key in plain.tensors:
        value = plain.read(key)
        writer.add(key, value)
        writer.add(f"optimizer.state.exp_avg.{key}", value * 2)
    for key in plain.objects:
        writer.copy(plain, key)
    writer.add("optimizer.buckets.0", torch.arange(7.0))
    writer.finish({"updates": 2})
    (step / "policy" / "generators").mkdir()
    (step / "policy" / "generators" / "rank00000.pt").write_bytes(b"state")
    (step / "trainer_state.json").write_text("{}")
    write_manifest(step, step=2, fingerprint={"model": "m"}, metrics={})
    return step


def test_a_training_checkpoint_stays_one(source, training, tmp_path):
    target = tmp_path / "out"
    work = reshard(training, target, Layout(tp=2), config=source)
    assert "optimizer.buckets.0" in work.rest
    inside = "policy/weights"
    before, after = DistCheckpoint(training / inside), DistCheckpoint(target / inside)
    assert before.tensors.keys() == after.tensors.keys()
    moment = "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc2.weight"
    assert after.grid(moment) == (2, 1, 2)
    assert torch.equal(before.read(moment), after.read(moment))
    assert after.read("optimizer.buckets.0").tolist() == list(range(7))
    common = torch.load(target / inside / "common.pt", weights_only=True)
    assert common == {"updates": 2}
    manifest = verify(target)
    assert manifest.step == 2 and manifest.fingerprint == {"model": "m"}
    assert "policy/generators/rank00000.pt" in manifest.files
    (target / "policy" / "weights" / "__1_0.distcp").write_bytes(b"")
    with pytest.raises(ManifestError, match="__1_0.distcp has 0 bytes"):
        verify(target)


def test_damage_leaves_nothing_behind(source, training, tmp_path):
    (training / "manifest.json").write_text(json.dumps({"no": "files"}))
    with pytest.raises(CheckpointError, match="is not a manifest: KeyError"):
        reshard(training, tmp_path / "out", Layout(tp=2), config=source)
    file = training / "policy" / "weights" / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:30000])
    with pytest.raises(CheckpointError, match="cut or damaged"):
        reshard(training, tmp_path / "out", Layout(tp=2), config=source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002"]


def test_what_cannot_be_done_says_why(source, converted, training, tmp_path):
    with pytest.raises(ConfigurationError, match="is not a folder"):
        reshard(tmp_path / "no", tmp_path / "out", Layout())
    with pytest.raises(CheckpointError, match="holds no Megatron checkpoint"):
        reshard(source, tmp_path / "out", Layout())
    with pytest.raises(ConfigurationError, match="--config FOLDER"):
        reshard(training, tmp_path / "out", Layout())
    with pytest.raises(ConfigurationError, match="--tp 3 does not divide"):
        reshard(converted, tmp_path / "out", Layout(tp=3))
    with pytest.raises(ConfigurationError, match="exists already"):
        reshard(converted, tmp_path, Layout())
