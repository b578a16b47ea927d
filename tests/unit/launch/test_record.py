"""Tests of nemo_rl.launch.record."""

from __future__ import annotations

import json
import subprocess

from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.record import (
    git_state,
    read,
    read_run,
    record_start,
)

ALLOCATION = {
    "job_id": 7,
    "node_index": 0,
    "num_nodes": 2,
    "node_names": ("n0", "n1"),
    "num_cpus": 2,
    "num_gpus": 8,
    "memory_mb": 1000,
}


def start(folder, job_id=7):
    attempt = folder / "attempts" / f"{job_id}.0"
    attempt.mkdir(parents=True)
    record_start(
        folder,
        attempt,
        Allocation(**ALLOCATION | {"job_id": job_id}),
        recipe="recipes/x.yaml",
        overrides=["logger.wandb.api_key=s3"],
        temp_dir=folder / "t",
    )
    return attempt


def test_a_job_writes_down_what_it_is_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    monkeypatch.setenv("NEMO_RL_CONTAINER", "image.sqsh")
    # As slurm/container.sh sets them.
    monkeypatch.setenv("NEMO_RL_IMAGE_BYTES", "3")
    monkeypatch.setenv("NEMO_RL_IMAGE_SHA256", "0a1b")
    attempt = start(tmp_path)
    facts = read(tmp_path)
    assert (facts["jobs"], facts["nodes"]) == ([7], 2)
    assert facts["overrides"] == ["logger.wandb.api_key=***"]
    assert facts["container"] == "image.sqsh"
    assert (facts["image_sha256"], facts["image_bytes"]) == ("0a1b", 3)
    began = read(attempt, "attempt.json")
    assert (began["node_names"], began["num_gpus"]) == (["n0", "n1"], 8)
    assert began["environment"]["NEMO_RL_CONTAINER"] == "image.sqsh"
    assert not any("s3" in path.read_text() for path in tmp_path.rglob("*.json"))


def test_later_jobs_of_the_run_are_added(tmp_path):
    start(tmp_path)
    start(tmp_path, 9)
    assert read(tmp_path)["jobs"] == [7, 9]
    assert read_run(tmp_path)["jobs"] == ["7", "9"]


def test_what_the_launcher_wrote_comes_first(tmp_path):
    launched = {
        "name": "x",
        "recipe": {"path": "recipes/x.yaml", "overrides": ["a.api_key=1", "b=2"]},
        "task_overrides": ["c=3"],
        "nodes": 4,
        "container": {"image": "i", "sha256": "12ab"},
        "code": {"commit": "c0ffee", "modified": True},
        "job_ids": ["7", "8"],
    }
    (tmp_path / "launch.json").write_text(json.dumps(launched))
    start(tmp_path)
    facts = read_run(tmp_path)
    assert facts["jobs"] == ["7", "8"]
    assert facts["overrides"] == ["a.api_key=***", "b=2", "c=3"]
    assert (facts["nodes"], facts["image_sha256"]) == (4, "12ab")
    assert (facts["commit"], facts["modified"]) == ("c0ffee", True)
    assert facts["submitted_at"] > 0


def test_no_manifest_and_a_broken_one_are_empty(tmp_path):
    assert read(tmp_path) == read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text("{")
    assert read(tmp_path) == {}


def test_git_state(tmp_path):
    assert git_state(tmp_path) == (None, None)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "f").write_text("1")
    for words in (["init", "-q"], ["add", "f"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    commit, modified = git_state(tmp_path)
    assert (len(commit), modified) == (40, False)
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path)[1] is True
