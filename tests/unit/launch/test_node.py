"""Tests of nemo_rl.launch.node: its command line; whole jobs are in tests/slurm."""

from __future__ import annotations

from pathlib import Path

from nemo_rl.launch.node import main, parse

FOLDERS = ["--run-dir=/r", "--attempt-dir=/r/attempts/1.0"]


def test_overrides_of_the_recipe_pass_through():
    options = parse([*FOLDERS, "x.yaml", "a.b=1", "c={d: e}"])
    assert (options.recipe, options.overrides) == ("x.yaml", ["a.b=1", "c={d: e}"])
    assert options.attempt_dir == Path("/r/attempts/1.0")


def test_outside_a_job_it_says_what_to_run_instead(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main([*FOLDERS, "x.yaml"]) == 2
    assert "--site local" in capsys.readouterr().err
