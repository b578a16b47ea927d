"""Tests of nemo_rl.launch.preflight.doctor: the command line."""

from __future__ import annotations

import json
import re
import time

from nemo_rl.launch.__main__ import main
from nemo_rl.launch.preflight.doctor import CHECKS
from nemo_rl.launch.preflight.node import NAMES
from nemo_rl.launch.site import root_dir


def test_this_machine_for_a_recipe(capsys):
    began = time.monotonic()
    local = ["doctor", "grpo_smollm2_cpu", "--site", "local", "--json"]
    code = main([*local, "--skip", "rows,accepted"])
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert time.monotonic() - began < 60
    assert {"shm", "nofile", "temp", "ports", "allreduce", "recipe", "site"} <= set(
        found
    )
    assert not {"rows", "slurm", "partition"} & set(found)
    assert found["allreduce"]["verdict"] == "ok", found["allreduce"]
    assert found["gpus"]["verdict"] == "skipped" and found["shm"]["why"]
    failed = [one for one in found.values() if one["verdict"] == "fail"]
    assert code == (1 if failed else 0)


def test_a_login_node_says_what_it_cannot_tell(capsys, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    main(["doctor", "--skip", "slurm"])
    out = capsys.readouterr().out
    assert "Only a compute node can tell: gpus, ecc" in out
    assert out.startswith("check")


def test_a_wrong_recipe_is_a_finding_and_exit_2(capsys):
    arguments = ["doctor", "grpo_llama8b", "grpo.sed=3", "--only", "recipe,site"]
    assert main([*arguments, "--json"]) == 2
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert "grpo.sed is not a field" in found["recipe"]["measured"]
    assert found["site"]["verdict"] == "ok"


def test_the_page_has_every_check():
    text = (root_dir() / "docs" / "preflight.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text, flags=re.M)
    assert sorted(listed) == sorted({c.name for c in CHECKS} | set(NAMES))


def test_mistakes_of_the_command_line(capsys, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["doctor", "--only", "shmm"]) == 2
    assert "no check 'shmm'. Did you mean shm" in capsys.readouterr().err
    assert main(["doctor", "--only", "shm"]) == 2
    assert "only be checked on the machine that trains" in capsys.readouterr().err
