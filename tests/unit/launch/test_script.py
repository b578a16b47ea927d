"""Tests of nemo_rl.launch.script: the text, and that bash reads it as meant."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from nemo_rl.launch.job import JobSpec, make_job
from nemo_rl.launch.script import render
from nemo_rl.launch.site import load_site, root_dir

ROOT = root_dir()
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_recorded_scripts_equal_their_rendering(name):
    """After an intended change: python -m nemo_rl.launch <name> --write."""
    recipe = ROOT / "recipes" / f"{name}.yaml"
    spec, _ = make_job(recipe, [], root=ROOT, site=load_site("generic", ROOT))
    recorded = recipe.with_suffix(".sh")
    assert recorded.read_text() == render(spec)
    assert recorded.stat().st_mode & 0o111


def test_header_of_a_gpu_job():
    spec = JobSpec(name="x", recipe="recipes/x.yaml", nodes=16, gpus_per_node=8)
    lines = render(spec).splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in (
        "--job-name=x",
        "--nodes=16",
        "--gpus-per-node=8",
        "--ntasks-per-node=1",
        "--exclusive",
        "--requeue",
        "--signal=B:USR2@300",
        "--output=slurm-%x-%j.log",
    ):
        assert f"#SBATCH {option}" in lines
    assert not any("partition" in line or "account" in line for line in lines)


def test_a_shared_machine_is_asked_for_in_parts():
    spec = JobSpec(
        name="x",
        recipe="recipes/x.yaml",
        gpus_per_node=4,
        cpus_per_node=34,
        memory_per_node="500G",
    )
    lines = render(spec).splitlines()
    assert "#SBATCH --cpus-per-task=34" in lines and "#SBATCH --mem=500G" in lines
    assert not any("exclusive" in line for line in lines)
    left_to_the_site = render(replace(spec, memory_per_node=None))
    assert "--mem" not in left_to_the_site


def test_cpu_job_asks_for_no_gpus():
    text = render(JobSpec(name="x", recipe="recipes/x.yaml"))
    assert "gpus" not in text


def test_bash_reads_overrides_and_variables_as_given(tmp_path):
    overrides = ("a.b='it''s'", 'data.kw={"x": [1, 2]}', "c=$HOME `id`")
    spec = JobSpec(
        name="x",
        recipe="recipes/with blank.yaml",
        overrides=overrides,
        site="gh200",
        run_dir="/runs/a b",
        container="img.sif",
        partition="batch",
        account="lab",
    )
    text = render(spec)
    assert "#SBATCH --partition=batch" in text
    assert "#SBATCH --account=lab" in text
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.sh").write_text(
        'printf "%s\\n" "$RECIPE" "$NEMO_RL_SITE" "$NEMO_RL_RUN_DIR" '
        '"$NEMO_RL_CONTAINER" "${OVERRIDES[@]}" "$@"\n'
    )
    done = subprocess.run(
        ["bash", "-s", "last=1"],
        input=text,
        env={"SLURM_SUBMIT_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "recipes/with blank.yaml",
        "gh200",
        "/runs/a b",
        "img.sif",
        *overrides,
        "last=1",
    ]


def test_run_by_hand_the_script_says_how_to_submit_it():
    text = render(JobSpec(name="x", recipe="recipes/x.yaml"))
    done = subprocess.run(
        ["bash", "-s"],
        input=text,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "submit from the checkout: sbatch recipes/x.sh" in done.stderr
