"""Tests of nemo_rl.launch.executor: states and ends, with stubs of SLURM's programs."""

from __future__ import annotations

import io
import os

import pytest

from nemo_rl.launch.follow import follow
from nemo_rl.launch.scheduler import Scheduler

submitit = pytest.importorskip("submitit", reason="pip install 'nemo_rl[slurm]'")

from nemo_rl.launch import executor as module  # noqa: E402
from nemo_rl.launch.executor import FORGOTTEN, Job, StateWatcher  # noqa: E402


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return a function that sets what squeue and sacct answer."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    scheduler = Scheduler(sleep=lambda seconds: None)
    monkeypatch.setattr(Job, "watcher", StateWatcher(scheduler))

    def answer(*lines, sacct="exit 1"):
        squeue = "; ".join(lines)
        bodies = {"squeue": f"echo >> {tmp_path}/asked\n{squeue}", "sacct": sacct}
        for name, body in bodies.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)

    answer()
    return answer


@pytest.fixture
def job(tmp_path, slurm):
    (tmp_path / "run").mkdir()
    return Job(tmp_path / "submitted", "42", run_dir=tmp_path / "run")


def told(begin):
    """A command that prints a line as squeue would."""
    return f"echo '{begin}|1|10:00|1:00|N/A|N/A|n1|||None|x'"


def test_states_of_many_jobs_by_one_question(tmp_path, slurm):
    slurm(told("44|42_0|RUNNING"), told("42|42_1|PENDING"), told("43|43|COMPLETED"))
    jobs = [Job(tmp_path, name) for name in ("42_0", "42_1", "43")]
    assert [job.state for job in jobs] == ["RUNNING", "PENDING", "COMPLETED"]
    assert (tmp_path / "asked").read_text() == "\n"


def test_one_empty_answer_is_not_the_end(job, slurm):
    slurm(told("42|42|RUNNING"))
    assert job.state == "RUNNING"
    slurm("exit 1")  # slurmctld restarts
    for _ in range(9):
        job.watcher.update()
    assert job.state == "RUNNING"
    slurm("exit 0")
    for _ in range(module.ENOUGH_ANSWERS - 1):
        job.watcher.update()
    assert not job.watcher.is_done("42", mode="cache")
    job.watcher.update()
    assert job.watcher.get_state("42", mode="cache") == FORGOTTEN


def test_a_job_whose_nodes_boot_has_not_ended(job, slurm):
    for state in ("CONFIGURING", "SUSPENDED", "REQUEUE_HOLD", "STAGE_OUT"):
        slurm(told(f"42|42|{state}"))
        assert not job.done(force_check=True), state


def test_what_squeue_has_forgotten_accounting_may_know(job, slurm):
    row = "42|42|CANCELLED by 0|0:15|1|5|Unknown|Unknown|Unknown|n1|x"
    slurm("exit 0", sacct=f"echo '{row}'")
    assert job.state == "CANCELLED"
    assert job.done()


def test_the_end_is_that_of_its_own_job(job):
    assert not job.done()
    (job.run_dir / "EXIT_CODE").write_text("0 41\n")  # a job before this one
    assert not job.done()
    assert job.summary()["exit_code"] is None
    (job.run_dir / "EXIT_CODE").write_text("0 42\n")
    assert job.done() and job.result()["exit_code"] == 0


def test_a_chain_ends_with_its_last_link_or_early(job):
    job.add_successor("43")
    (job.run_dir / "EXIT_CODE").write_text("75 42\n")
    assert not job.done()
    (job.run_dir / "EXIT_CODE").write_text("75 43\n")
    assert job.done() and job.result()["exit_code"] == 75
    (job.run_dir / "EXIT_CODE").write_text("2 42\n")
    assert job.done()
    with pytest.raises(submitit.core.utils.FailedJobError, match="exit code 2"):
        job.result()


def test_cancelled_before_it_began(job, slurm):
    slurm(told("42|42|CANCELLED"))
    assert job.done(force_check=True) and job.exit_code() == 1
    with pytest.raises(submitit.core.utils.UncompletedJobError, match="is CANCELLED"):
        job.result()


def test_follow_prints_what_is_new(job):
    log = job.run_dir / "job.log"
    log.write_text("an earlier job\n")
    job.skip_log()
    with log.open("a") as file:
        file.write("step 1\n")
    (job.run_dir / "EXIT_CODE").write_text("3 42\n")
    out = io.StringIO()
    assert follow(job, out) == 3
    assert out.getvalue() == "step 1\n"
    assert job.stdout().endswith("step 1\n") and job.stderr() is None
