"""Tests of nemo_rl.launch.show."""

from __future__ import annotations

import json
from types import SimpleNamespace

from nemo_rl.launch.__main__ import main
from nemo_rl.launch.show import see_to_the_end


def test_dry_run_for_programs(capsys):
    words = ["launch", "grpo_llama8b", "--nodes", "4+1", "--chain", "1", "--dry-run"]
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["configuration"]["cluster"]["spare_nodes"] == 1
    assert shown["scripts"][0].startswith("#!/bin/bash\n")
    assert shown["manifest"]["gpu_hours"] == 2 * 5 * 4 * 8


def test_a_sweep_is_shown_as_a_table(capsys):
    sweep = ["--array", "grpo.seed=1,2", "--sweep", "policy.learning_rate=1e-6,2e-6"]
    assert main(["grpo_smollm2_cpu", "--dry-run", *sweep]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --array=0-3\n" in out
    assert "run  grpo.seed  policy.learning_rate\n" in out
    assert "3    2          2e-6\n" in out
    assert "# at most 4.0 node-hours, 0.0 GPU-hours: 4 jobs of 1 node," in out


def run(number, code):
    end = {"job_id": str(number), "state": "RUNNING", "step": 5, "checkpoint": "c"}
    end["exit_code"] = code
    return SimpleNamespace(
        all_ids=[str(number)], exit_code=lambda: code, summary=lambda: end
    )


def test_the_worst_end_counts(capsys):
    assert (
        see_to_the_end([run(1, 0), run(2, 75)], follow_log=False, as_json=False) == 75
    )
    assert capsys.readouterr().out.splitlines() == [
        "job 1 ended with exit code 0: step 5, checkpoint c",
        "job 2 ended with exit code 75: step 5, checkpoint c",
    ]
    assert see_to_the_end([run(1, 0)], follow_log=False, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)[0]["step"] == 5
