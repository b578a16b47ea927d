"""Manifests: what they say, and what is found with them."""

from __future__ import annotations

import json

import pytest
import torch
import xxhash

from nemo_rl.converters import manifest
from nemo_rl.utils.exceptions import CheckpointError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "a").write_bytes(b"aaaa")
    (tmp_path / "hf" / "b").write_bytes(b"")
    manifest.write_manifest(
        tmp_path, {"w": {"bytes": 4, "digest": "1"}}, {"nemo_rl": "0"}
    )
    return tmp_path


def test_digests_are_those_of_xxhash(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3)
    rows = tensor.t().contiguous().numpy().tobytes()
    assert manifest.digest(tensor.t()) == xxhash.xxh3_128_hexdigest(rows)
    data = bytes(range(256)) * 300_000  # more than one window
    (tmp_path / "file").write_bytes(data)
    seen = []
    found = manifest.digest_file(tmp_path / "file", seen.append)
    assert found == xxhash.xxh3_128_hexdigest(data) and sum(seen) == len(data)


def test_a_manifest_lists_every_file_without_paths_of_the_machine(folder):
    text = (folder / manifest.MANIFEST).read_text()
    assert str(folder) not in text
    content = manifest.read_manifest(folder)
    assert set(content["files"]) == {"a", "hf/b"}
    assert content["files"]["a"]["bytes"] == 4
    manifest.check_files(folder, content)


def test_whatever_changed_is_listed(folder):
    content = manifest.read_manifest(folder)
    (folder / "a").write_bytes(b"aaba")
    (folder / "hf" / "b").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="a has other content, hf/b has 1 bytes"):
        manifest.check_files(folder, content)
    (folder / "a").unlink()
    with pytest.raises(CheckpointError, match="a cannot be read .No such file"):
        manifest.check_files(folder, content)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 9},
        {"files": {"../a": {"bytes": 1, "digest": ""}}},
        {"files": {"/a": {"bytes": 1, "digest": ""}}},
        {"files": {"a": {}}},
        {"tensors": []},
    ],
)
def test_what_is_no_manifest_is_refused(folder, change):
    path = folder / manifest.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="not a readable manifest"):
        manifest.read_manifest(folder)


def test_a_folder_without_one_says_what_else_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="no conversion wrote it.* verify A B"):
        manifest.read_manifest(tmp_path)
