"""Tests of nemo_rl.launch.images with a small program in the place of enroot."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest

from nemo_rl.launch.__main__ import main
from nemo_rl.launch.images import import_image, recorded
from nemo_rl.utils.exceptions import LaunchError

ENROOT = """#!/bin/bash
echo "$@" >> {folder}/calls
sleep "${{ENROOT_SLEEP:-0}}"
[ -z "${{ENROOT_FAILS:-}}" ] || {{ echo "[ERROR] no such manifest" >&2; exit 1; }}
printf 'squashed %s' "$4" > "$3"
"""


@pytest.fixture
def enroot(tmp_path, monkeypatch):
    """A folder with the stub on the PATH; `calls` in it has a line for each call."""
    program = tmp_path / "bin" / "enroot"
    program.parent.mkdir()
    program.write_text(ENROOT.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def test_the_file_appears_with_its_digest(enroot, capsys):
    output = enroot / "images" / "x.sqsh"
    uri = "docker://nvcr.io#nvidia/pytorch:25.01"
    for words in (["launch", "import-image"], ["import-image"]):
        assert main([*words, uri, "--output", str(output)]) == 0
    text = f"squashed {uri}".encode()
    assert output.read_bytes() == text
    entry = json.loads((output.parent / "x.sqsh.json").read_text())
    assert entry["sha256"] == hashlib.sha256(text).hexdigest()
    assert (entry["source"], entry["bytes"]) == (uri, len(text))
    assert entry["sha256"] in capsys.readouterr().out
    partial = output.parent / ".x.sqsh.partial"
    assert calls(enroot) == [f"import --output {partial} {uri}"]
    assert not partial.exists()


def test_a_tag_is_an_image_of_the_local_docker(enroot):
    entry = import_image("nemo_rl:latest", enroot / "x.sqsh")
    assert entry["source"] == "dockerd://nemo_rl:latest"


def test_force_imports_again(enroot):
    import_image("a:1", enroot / "x.sqsh")
    with pytest.raises(LaunchError, match="was imported from dockerd://a:1, not from"):
        import_image("b:1", enroot / "x.sqsh")
    import_image("b:1", enroot / "x.sqsh", force=True)
    assert (enroot / "x.sqsh").read_text() == "squashed dockerd://b:1"
    assert len(calls(enroot)) == 2


def test_a_file_of_somebody_else_is_kept(enroot):
    (enroot / "x.sqsh").write_text("mine")
    with pytest.raises(LaunchError, match="was not written by import-image"):
        import_image("a:1", enroot / "x.sqsh")
    assert (enroot / "x.sqsh").read_text() == "mine"
    assert recorded(enroot / "x.sqsh") is None


def test_a_failure_leaves_nothing(enroot, monkeypatch):
    monkeypatch.setenv("ENROOT_FAILS", "1")
    with pytest.raises(LaunchError, match=r"ended with 1 .*\n.*no such manifest"):
        import_image("a:1", enroot / "x.sqsh")
    assert not (enroot / "x.sqsh").exists()
    assert not (enroot / "x.sqsh.json").exists()


def test_of_two_at_a_time_one_imports(enroot, monkeypatch):
    monkeypatch.setenv("ENROOT_SLEEP", "0.7")
    program = "import sys; from nemo_rl.launch.images import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "a:1", "--output", str(enroot / "x.sqsh")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in "ab"]
    said = "".join(process.communicate(timeout=60)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert len(calls(enroot)) == 1
    assert "waiting for another import of x.sqsh" in said


def test_without_enroot(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["import-image", "a:1", "--output", str(tmp_path / "x.sqsh")]) == 2
    assert "enroot is not installed here" in capsys.readouterr().err
