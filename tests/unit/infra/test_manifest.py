"""The manifest lists what is there and finds what is not."""

from __future__ import annotations

import json

import pytest

from nemo_rl.infra import manifest as module
from nemo_rl.infra.manifest import ManifestError, read_manifest, verify, write_manifest


def write(root):
    (root / "policy").mkdir()
    (root / "policy" / "a.bin").write_bytes(b"abc")
    return write_manifest(root, step=3, fingerprint={"m": 1}, metrics={"x": 0.5})


def test_round_trip(tmp_path):
    written = write(tmp_path)
    assert verify(tmp_path) == written == read_manifest(tmp_path)
    assert list(written.files) == ["policy/a.bin"]
    assert written.files["policy/a.bin"]["size"] == 3


def test_large_files_are_checked_by_size_only(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HASHED_UP_TO_BYTES", 2)
    assert write(tmp_path).files["policy/a.bin"]["sha256"] is None
    (tmp_path / "policy" / "a.bin").write_bytes(b"xyz")
    verify(tmp_path)
    (tmp_path / "policy" / "a.bin").write_bytes(b"xy")
    with pytest.raises(ManifestError, match="a.bin has 2 bytes, the manifest says 3"):
        verify(tmp_path)


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(ManifestError, match="manifest.json is missing"):
        read_manifest(tmp_path)


def test_another_format_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ManifestError, match="has format 99, this version reads 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "step": 2}', "\xff"])
def test_nonsense_is_a_manifest_error(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)
