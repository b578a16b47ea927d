"""What a folder must hold to become a divided model; weights given by a caller."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.functional.engines import dtensor_config, engine, grpo_batch
from tests.functional.ranks import run_ranks


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return models.save(tmp_path_factory.mktemp("model") / "m", "llama", layers=2)


def _refusals(rank, cases):
    errors = []
    for folder, config in cases:
        try:
            engine(rank, folder, config)
            errors.append("")
        except ConfigurationError as error:
            errors.append(str(error))
    return errors


def _changed(source: Path, folder: Path, tensors=None, **config) -> Path:
    shutil.copytree(source, folder)
    if tensors is not None:
        weights = load_file(folder / "model.safetensors")
        tensors(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**text, **config}))
    return folder


def test_files_of_another_model_are_refused_with_their_names(source, tmp_path):
    norm = "model.norm.weight"
    folders = {
        "lack model.norm.weight": _changed(
            source, tmp_path / "a", lambda w: w.pop(norm)
        ),
        "have extra.weight, which the model has not": _changed(
            source, tmp_path / "b", lambda w: w.update({"extra.weight": torch.ones(1)})
        ),
        "have model.norm.weight of shape [3] where config.json implies [64]": _changed(
            source, tmp_path / "c", lambda w: w.update({norm: torch.ones(3)})
        ),
        "transformers cannot build the model": _changed(
            source, tmp_path / "d", model_type="nonesuch"
        ),
        "quantised weights": _changed(
            source, tmp_path / "e", quantization_config={"bits": 4}
        ),
    }
    cases = [(folder, dtensor_config()) for folder in folders.values()]
    (errors,) = run_ranks(_refusals, 1, cases)
    for want, error in zip(folders, errors, strict=True):
        assert want in error, error


def _given(rank, folder):
    """Weights that a caller gives, and those that it gives in part."""
    backend = engine(rank, folder, dtensor_config())
    base = backend.get_logprobs(grpo_batch())
    weights = {name: w * 1.5 for name, w in backend.export_weights()}
    backend.import_weights(weights)
    changed = backend.get_logprobs(grpo_batch())
    backend.import_weights({name: w / 1.5 for name, w in weights.items()})
    with pytest.raises(ConfigurationError, match="weights of the caller lack"):
        backend.import_weights({})
    return base, changed, backend.get_logprobs(grpo_batch())


def test_weights_can_be_given(source):
    ((base, changed, again),) = run_ranks(_given, 1, source)
    assert not torch.allclose(changed, base, atol=1e-2)
    torch.testing.assert_close(again, base, atol=1e-5, rtol=1e-5)


def _planned(rank, folder):
    plan = "tests.unit.backends.training.dtensor.test_plans:MLP"
    config = dtensor_config(2, dtensor_cfg={"custom_parallel_plan": plan})
    backend = engine(rank, folder, config)
    parts = {
        name: tuple(w.shape) for name, w in backend.sharded.local_weights().items()
    }
    return backend.get_logprobs(grpo_batch()), parts


def test_a_plan_of_ones_own_divides_what_it_names(source):
    ((want, _),) = run_ranks(_unplanned, 1, source)
    for got, parts in run_ranks(_planned, 2, source):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        layer = "model.layers.1"
        assert parts[f"{layer}.mlp.up_proj.weight"] == (48, 64)
        assert parts[f"{layer}.mlp.down_proj.weight"] == (64, 48)
        assert parts[f"{layer}.self_attn.q_proj.weight"] == (64, 64)


def _unplanned(rank, folder):
    return engine(rank, folder, dtensor_config()).get_logprobs(grpo_batch()), None
