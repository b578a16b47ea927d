"""Tests of nemo_rl.launch.submit with small programs in the place of SLURM's.

A real slurmctld is asked in tests/slurm.
"""

from __future__ import annotations

import os

import pytest

from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.script import render
from nemo_rl.launch.site import Site
from nemo_rl.launch.submit import ask_slurm, submit, wait_for
from nemo_rl.utils.exceptions import LaunchError

SPEC = JobSpec(name="x", recipe="recipes/x.yaml", nodes=2)
SITE = Site("lab", {"SBATCH_PARTITION": "fast"})


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts a shell program on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name, body):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    put("srun", "exit 0")
    return put


def test_submitits_job_has_our_text_and_the_sites_variables(tmp_path, programs):
    pytest.importorskip("submitit", reason="pip install 'nemo_rl[slurm]'")
    programs(
        "sbatch",
        'pwd > seen; echo "$SBATCH_PARTITION" >> seen; cat "$1" > text; '
        'echo "Submitted batch job 42"',
    )
    job = submit(SPEC, root=tmp_path, site=SITE)
    assert job.job_id == "42"
    assert (tmp_path / "seen").read_text() == f"{tmp_path}\nfast\n"
    assert (tmp_path / "text").read_text() == render(SPEC)
    assert "SBATCH_PARTITION" not in os.environ


def test_a_refusal_is_told_in_slurms_words(tmp_path, programs):
    pytest.importorskip("submitit", reason="pip install 'nemo_rl[slurm]'")
    programs("sbatch", 'echo "sbatch: error: invalid partition" >&2; exit 1')
    with pytest.raises(LaunchError, match="refused the job: .*invalid partition"):
        submit(SPEC, root=tmp_path, site=SITE)
    with pytest.raises(LaunchError, match="refused the job: .*invalid partition"):
        ask_slurm(SPEC, root=tmp_path, site=SITE)


def test_test_only_passes_the_script_on_stdin(tmp_path, programs):
    programs("sbatch", 'cat > text; echo "sbatch: Job 1 to start at noon" >&2')
    assert ask_slurm(SPEC, root=tmp_path, site=SITE) == "Job 1 to start at noon"
    assert (tmp_path / "text").read_text() == render(SPEC)


def test_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="sbatch is not installed here"):
        ask_slurm(SPEC, root=tmp_path, site=SITE)


def test_wait_for_returns_the_jobs_exit_code(tmp_path, programs, monkeypatch):
    monkeypatch.setattr("nemo_rl.launch.submit.POLL_S", 0.01)
    monkeypatch.setattr("nemo_rl.launch.scheduler.ASK_AGAIN_S", 0.01)
    programs(
        "scontrol",
        "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n; "
        'case $n in 0) echo "JobId=42 JobState=RUNNING ExitCode=0:0";; 1) exit 1;; '
        '*) echo "JobId=42 JobState=FAILED ExitCode=2:0";; esac',
    )
    assert wait_for("42", root=tmp_path, site=SITE) == 2
    programs("scontrol", 'echo "JobId=42 JobState=CANCELLED ExitCode=0:15"')
    assert wait_for("42", root=tmp_path, site=SITE) == 143
    programs("scontrol", 'echo "Invalid job id specified" >&2; exit 1')
    with pytest.raises(LaunchError, match="SLURM does not know job 42"):
        wait_for("42", root=tmp_path, site=SITE)
