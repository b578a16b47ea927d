"""Recognising a model among the keys of a checkpoint."""

from __future__ import annotations

import pytest

from nemo_rl.converters.formats.dcp_names import OUTPUT, expected_of, find_model
from nemo_rl.utils.exceptions import CheckpointError
from tests.fakes import models


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    models.tiny_config("qwen2", tied=True, layers=2).save_pretrained(folder)
    return with_architecture(folder, "Qwen2ForCausalLM")


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untied")
    models.tiny_config("llama", layers=2).save_pretrained(folder)
    return with_architecture(folder, "LlamaForCausalLM")


def with_architecture(folder, name):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", f'{{"architectures": ["{name}"],', 1))
    return expected_of(folder)


@pytest.mark.parametrize("prefix", ["", "model.", "state.model."])
def test_any_prefix_is_found(untied, prefix):
    keys = [prefix + name for name in untied.shapes]
    other = ["optim.state.model.norm.weight.exp_avg", "optimizer.step", "step"]
    found = find_model([*keys, *other], untied)
    assert found.keys == {name: prefix + name for name in untied.shapes}
    assert found.left == sorted(other)


def test_names_of_wrappers_are_looked_through(untied):
    keys = [
        "model._orig_mod." + name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
        for name in untied.shapes
    ]
    assert set(find_model(keys, untied).keys) == set(untied.shapes)
    with pytest.raises(CheckpointError, match="wrappers alone: .*norm.weight"):
        find_model([*keys, "model.model.norm.weight"], untied)


def test_a_tied_output_layer_may_be_there_or_not(tied):
    assert OUTPUT not in find_model(list(tied.shapes), tied).keys
    found = find_model([*tied.shapes, OUTPUT], tied)
    assert found.keys[OUTPUT] == OUTPUT and not found.left


def test_two_copies_need_a_choice(untied):
    keys = [p + name for p in ("ema.", "model.") for name in untied.shapes]
    with pytest.raises(CheckpointError, match="2 times, .*'ema.', 'model.'.*--prefix"):
        find_model(keys, untied)
    found = find_model(keys, untied, prefix="ema")
    assert found.keys[OUTPUT] == "ema.lm_head.weight" and len(found.left) > 10


def test_what_is_missing_or_too_much_is_listed(untied):
    keys = ["model." + name for name in untied.shapes if "norm" not in name]
    with pytest.raises(CheckpointError, match="Missing: .*norm.weight.*--config"):
        find_model(keys, untied)
    keys = ["model." + name for name in [*untied.shapes, "value_head.weight"]]
    with pytest.raises(CheckpointError, match="Unexpected: value_head.weight"):
        find_model(keys, untied)
    with pytest.raises(CheckpointError, match="none of the .* Found: a, b"):
        find_model(["a", "b"], untied)
