"""The command verify: what it proves, and what it finds."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from nemo_rl.converters.cli.parser import main
from nemo_rl.converters.convert import convert
from nemo_rl.converters.manifest import MANIFEST
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=False, layers=2, hidden=32)


@pytest.fixture
def there(source, tmp_path):
    return convert(source, tmp_path / "there")


def verify(*folders):
    return main(["verify", *map(str, folders)])


def test_a_result_is_what_its_manifest_says(there, tmp_path, capsys):
    back = convert(there, tmp_path / "back")
    assert verify(there) == verify(back) == 0
    assert capsys.readouterr().out.count("is what its manifest says") == 2
    there.rename(tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere") == 0


def test_one_byte_is_found(there, capsys):
    file = there / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert verify(there) == 2
    assert "__0_0.distcp has other content" in capsys.readouterr().err


def test_files_that_changed_places_are_found(there, tmp_path, capsys):
    back = convert(there, tmp_path / "back", shard_bytes=40_000)
    files = sorted(back.glob("*.safetensors"))
    assert len(files) > 2
    files[0].rename(tmp_path / "x")
    files[1].rename(files[0])
    (tmp_path / "x").rename(files[1])
    assert verify(back) == 2
    assert files[0].name in capsys.readouterr().err


def test_tensors_that_changed_places_are_found(there, source, tmp_path, capsys):
    """Also where somebody made the digests of the files fit."""
    back = convert(there, tmp_path / "back")
    values = load_file(back / "model.safetensors")
    one, two = (f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    values[one], values[two] = values[two], values[one]
    save_file(values, back / "model.safetensors", {"format": "pt"})
    content = json.loads((back / MANIFEST).read_text())
    from nemo_rl.converters.manifest import digest_file

    content["files"]["model.safetensors"] = {
        "bytes": (back / "model.safetensors").stat().st_size,
        "digest": digest_file(back / "model.safetensors"),
    }
    (back / MANIFEST).write_text(json.dumps(content))
    assert verify(back) == verify(source, back) == 2
    err = capsys.readouterr().err
    assert f"not what {MANIFEST} describes: {one}, {two}" in err
    assert f"{one} differs" in err


def test_a_folder_without_manifest_or_none_at_all(source, tmp_path, capsys):
    assert verify(source) == verify(tmp_path / "nowhere") == 2
    err = capsys.readouterr().err
    assert "no conversion wrote it" in err and "nowhere is not a folder" in err


def test_either_kind_is_compared_with_either(source, there, tmp_path, capsys):
    back = convert(there, tmp_path / "back")
    assert verify(source, there) == verify(there, back) == verify(back, source) == 0
    assert capsys.readouterr().out.count("equal: every element") == 3
