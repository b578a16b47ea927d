"""A model's fingerprint changes with the model and not with its place."""

from __future__ import annotations

import json
import shutil

import pytest

from nemo_rl.infra.fingerprint import model_fingerprint
from nemo_rl.utils.exceptions import ConfigurationError

SIZE = 400_000


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    config = {"architectures": ["X"], "hidden_size": 8, "transformers_version": "5"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "model-1.safetensors").write_bytes(bytes(SIZE))
    (path / "model-2.safetensors").write_bytes(b"short")
    (path / "tokenizer.json").write_text("{}")
    return path


def changed(folder, name, position):
    data = bytearray((folder / name).read_bytes())
    data[position] ^= 1
    (folder / name).write_bytes(bytes(data))
    return model_fingerprint(folder)


def test_fingerprint_says_shape_weights_and_tokenizer(folder):
    found = model_fingerprint(folder)
    assert found["model"] == {"architectures": ["X"], "hidden_size": 8}
    assert len(found["base_weights"]) == len(found["tokenizer"]) == 16
    assert json.loads(json.dumps(found)) == found


def test_fingerprint_does_not_depend_on_the_place(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert model_fingerprint(copy) == model_fingerprint(folder)


@pytest.mark.parametrize("position", [0, 60_000, SIZE - 60_000, SIZE - 1])
def test_fingerprint_sees_weights_at_both_ends(folder, position):
    before = model_fingerprint(folder)
    after = changed(folder, "model-1.safetensors", position)
    assert after["base_weights"] != before["base_weights"]
    assert after["tokenizer"] == before["tokenizer"]


def test_fingerprint_sees_small_files_sizes_and_tokenizers(folder):
    before = model_fingerprint(folder)
    small = changed(folder, "model-2.safetensors", 2)
    assert small["base_weights"] != before["base_weights"]
    with open(folder / "model-1.safetensors", "ab") as file:
        file.write(bytes(1))  # the sampled ends are all zeros as before
    longer = model_fingerprint(folder)
    assert longer["base_weights"] != small["base_weights"]
    other = changed(folder, "tokenizer.json", 0)
    assert other["tokenizer"] != before["tokenizer"]
    assert other["base_weights"] == longer["base_weights"]


@pytest.mark.parametrize("content", [None, "{", "\ufffe"])
def test_fingerprint_of_a_folder_without_config_is_refused(folder, content):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match="config.json cannot be read"):
        model_fingerprint(folder)
