"""Names of models: folders, runs and their checkpoints, conversions."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from nemo_rl.converters.convert import convert
from nemo_rl.converters.dcp import hf_to_dcp
from nemo_rl.infra.manifest import write_manifest
from nemo_rl.models.sources import find_model, weights_of
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from tests.fakes import models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, layers=2, hidden=32)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """A run's folder as a training leaves it: two checkpoints, the second newest."""
    folder = tmp_path_factory.mktemp("run")
    for step in (1, 2):
        path = folder / "checkpoints" / f"step_{step:06d}"
        path.mkdir(parents=True)
        convert(model, path / "policy")
        write_manifest(path, step=step, fingerprint={}, metrics={})
    return folder


def test_a_hugging_face_folder_is_itself(model) -> None:
    source = find_model(model)
    assert source.folder == model and source.step is None
    with weights_of(source) as folder:
        assert folder == model


@pytest.mark.parametrize(
    ("place", "step"),
    [
        (".", 2),
        ("checkpoints", 2),
        ("checkpoints/step_000001", 1),
        ("checkpoints/step_000001/policy", None),
    ],
)
def test_a_checkpoint_becomes_a_folder_for_a_while(
    run, model, tmp_path, place, step
) -> None:
    source = find_model(run / place)
    assert source.step == step and (source.folder / "config.json").is_file()
    with weights_of(source, tmp_path) as folder:
        got = load_file(folder / "model.safetensors")
    want = load_file(model / "model.safetensors")
    assert all((got[name] == value).all() for name, value in want.items())
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_the_other_engine(model, tmp_path) -> None:
    """As the DTensor engine writes it: torch's own format under Hugging Face names."""
    saved = tmp_path / "step_000004" / "policy"
    saved.mkdir(parents=True)
    hf_to_dcp(model, saved / "weights", prefix="model.")
    (saved / "weights" / "hf").rename(saved / "hf")
    (saved / "contents.json").write_text('{"engine": "dtensor"}')
    write_manifest(saved.parent, step=4, fingerprint={}, metrics={})
    with weights_of(find_model(saved.parent), tmp_path) as folder:
        got = load_file(folder / "model.safetensors")
    want = load_file(model / "model.safetensors")
    assert all((got[name] == value).all() for name, value in want.items())


def test_a_consolidated_checkpoint_needs_no_conversion(model, tmp_path) -> None:
    step = tmp_path / "step_000007"
    models.save(step / "hf", layers=2, hidden=32)
    write_manifest(step, step=7, fingerprint={}, metrics={})
    source = find_model(step)
    assert (source.folder, source.checkpoint, source.step) == (step / "hf", None, 7)


def test_what_is_no_model_is_named(run, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="no config.json"):
        find_model(tmp_path)
    path = tmp_path / "step_000003"
    path.mkdir()
    (path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        find_model(path)
