"""Tests of nemo_rl.launch.manifest."""

from __future__ import annotations

import json
import subprocess

from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.manifest import (
    git_state,
    image_facts,
    mask_overrides,
    read,
    record_start,
    record_submission,
)
from nemo_rl.launch.site import Site

SPEC = JobSpec(
    name="x", recipe="recipes/x.yaml", nodes=2, overrides=("a.api_key=s3", "b.c=1")
)
ALLOCATION = Allocation(
    job_id=7,
    node_index=0,
    num_nodes=2,
    node_names=("n0", "n1"),
    num_cpus=2,
    num_gpus=8,
    memory_mb=1000,
)


def submit(folder, root, jobs):
    site = Site("lab", {"NEMO_RL_CONTAINER": "img@sha256:" + "0" * 64, "OTHER": "x"})
    return record_submission(folder, SPEC, jobs, root=root, site=site)


def start(folder):
    attempt = folder / "attempts" / "7.0"
    attempt.mkdir(parents=True)
    record_start(
        folder,
        attempt,
        ALLOCATION,
        recipe="recipes/x.yaml",
        overrides=["logger.wandb.api_key=s3"],
        temp_dir=folder / "t",
    )
    return attempt


def test_submission_writes_what_was_asked_for_and_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    folder = tmp_path / "run"
    text = submit(folder, tmp_path, ["7", "8"]).read_text()
    facts = json.loads(text)
    assert facts["jobs"] == [7, 8]
    assert facts["overrides"] == ["a.api_key=***", "b.c=1"]
    assert facts["environment"]["NEMO_RL_CONTAINER"].startswith("img@")
    assert facts["container"]["digest"] == "sha256:" + "0" * 64
    assert "s3" not in text
    assert "OTHER" not in text


def test_a_later_submission_adds_its_jobs(tmp_path):
    first = json.loads(submit(tmp_path, tmp_path, [7, 8]).read_text())
    again = json.loads(submit(tmp_path, tmp_path, [8, 9]).read_text())
    assert again["jobs"] == [7, 8, 9]
    assert again["submitted_at"] == first["submitted_at"]


def test_a_start_completes_what_the_submission_did_not_write(tmp_path):
    attempt = start(tmp_path)
    facts = read(tmp_path)
    assert (facts["jobs"], facts["nodes"]) == ([7], 2)
    assert facts["overrides"] == ["logger.wandb.api_key=***"]
    began = read(attempt, "attempt.json")
    assert began["node_names"] == ["n0", "n1"]
    assert began["num_gpus"] == 8


def test_a_start_leaves_the_submission_as_it_is(tmp_path):
    path = submit(tmp_path, tmp_path, [7])
    before = path.read_text()
    start(tmp_path)
    assert path.read_text() == before


def test_no_manifest_and_a_broken_one_are_empty(tmp_path):
    assert read(tmp_path) == {}
    (tmp_path / "run.json").write_text("{")
    assert read(tmp_path) == {}


def test_overrides_inside_a_mapping_are_masked():
    (text,) = mask_overrides(['logger.wandb={"api_key": "s3", "project": "p"}'])
    assert text == 'logger.wandb={"api_key": "***", "project": "p"}'
    kept = ["a.b=[1, 2]", "a.max_tokens=4", "c=", "d={", "model=x:y"]
    assert mask_overrides(kept) == kept


def test_an_images_digest_lies_beside_it(tmp_path):
    image = tmp_path / "a.sqsh"
    image.write_bytes(b"abc")
    assert image_facts(str(image))["digest"] is None
    (tmp_path / "a.sqsh.sha256").write_text("12ab  a.sqsh\n")
    facts = image_facts(str(image))
    assert (facts["digest"], facts["bytes"]) == ("sha256:12ab", 3)
    assert image_facts(None) is None


def test_git_state(tmp_path):
    assert git_state(tmp_path) is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "f").write_text("1")
    for words in (["init", "-q"], ["add", "f"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    state = git_state(tmp_path)
    assert (len(state["commit"]), state["changed"]) == (40, False)
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path)["changed"] is True
