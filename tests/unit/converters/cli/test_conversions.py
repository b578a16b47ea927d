"""The commands that convert and compare: what they print and how they exit."""

from __future__ import annotations

import pytest

from nemo_rl.converters.cli.parser import main
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=False, layers=2, hidden=32)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_there_and_back_and_equal(source, tmp_path, capsys):
    there, back = tmp_path / "there", tmp_path / "back"
    assert run("hf-to-megatron", source, there) == 0
    assert "read back and equal to the source" in capsys.readouterr().out
    assert run("megatron-to-hf", there, back, "--shard-gib", 1e-5) == 0
    capsys.readouterr()
    assert run("verify", source, back) == run("verify", back, there) == 0
    out = capsys.readouterr().out
    assert out.count("equal: every element") == 2 and "MB/s" in out


def test_dry_run_writes_nothing(source, tmp_path, capsys):
    assert run("hf-to-megatron", source, tmp_path / "m", "--dry-run") == 0
    assert "on disk, the largest weight" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_paragraph_and_exit_code_2(source, tmp_path, capsys):
    assert run("hf-to-megatron", tmp_path / "no", tmp_path / "m") == 2
    assert run("megatron-to-hf", source, tmp_path / "m") == 2
    models.save(tmp_path / "other", "llama", tied=False, layers=3, hidden=32)
    lines = capsys.readouterr().err.splitlines()[:2]
    assert run("verify", source, tmp_path / "other") == 2
    lines += capsys.readouterr().err.splitlines()
    assert [line[:9] for line in lines] == ["nemo_rl: "] * 3
    assert "use hf-to-megatron" in lines[1]
    assert "different shapes: num_layers" in lines[2]
