"""No time is lost: limits, preemption, scancel and touch-files on real training jobs.

A chain under a hard limit is in test_chain.py.
"""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.slurm.test_training import FINISHED, RECIPE, Run

pytestmark = pytest.mark.timeout(500)

GOING_ON = "the next attempt goes on from "
SLOW = "env.reward_fn=slow_reward:always"


@pytest.fixture
def slow_run(cluster, checkout, job_env, training):
    """A job of one node with steps of more than a second, which nothing but us ends."""
    variables = job_env | {"NEMO_RL_TIME_LIMIT_POLL": "1"}
    own = [SLOW, "grpo.max_num_steps=400", "checkpointing.save_period=1000"]

    def submit(*, margin=60, signal="CONT@1"):
        options = ["--nodes=1", "--time=30", f"--signal=B:{signal}", RECIPE]
        own.append(f"checkpointing.end_margin_s={margin}")
        return Run(cluster, checkout, variables, [*options, *training, *own])

    return submit


def ran_s(cluster, run):
    """Seconds since the attempt began, as SLURM counts them."""
    hours, minutes, seconds = map(int, cluster.job(run.number)["RunTime"].split(":"))
    return 3600 * hours + 60 * minutes + seconds


def requeued_with_progress(run, count, *, within):
    """Wait until the job was requeued so many times; return the last step saved."""
    run.until(lambda: run.log().count(GOING_ON) >= count, within)
    saved = run.log().split(GOING_ON)[count].split()[0]
    return int(saved.rpartition("step_")[2])


def test_limit_preemption_and_stop(cluster, checkout, job_env, slow_run):
    """One job of three attempts, each of which ends early in another way."""
    began = time.monotonic()

    def say(text):
        print(f"{time.monotonic() - began:5.0f} s  {text}")

    def nemo_rl(*words):
        command = [sys.executable, "-m", "nemo_rl.launch", *words]
        return cluster.run(*command, cwd=checkout, env=job_env).stdout

    run = slow_run(margin=300)
    run.until(lambda: run.steps(), 150)
    assert "checkpoint: /" in nemo_rl("save", str(run.number))
    assert not (run.folder / "SAVE").exists()
    say("training, and saved by nemo-rl save")
    # Less is left than the margin: the trainer finds that out by itself.
    limit = ran_s(cluster, run) // 60 + 3
    cluster.run("scontrol", "update", f"jobid={run.number}", f"timelimit={limit}")
    first = requeued_with_progress(run, 1, within=60)
    assert "the time limit was changed" in run.log()
    assert "another step does not fit: the allocation ends at" in run.log()
    assert "margin 300 s" in run.log() and "USR2" not in run.log()
    say("limit shortened, saved, requeued")
    cluster.run("scontrol", "update", f"jobid={run.number}", "timelimit=30")
    run.until(lambda: run.steps()[-1] > first, 150)
    say("going on")
    # SLURM sends TERM to every process of the job, and KILL after the grace.
    urgent = cluster.submit(
        *("--partition=urgent", "--nodes=4", "--exclusive", "--wrap=true"), cwd=checkout
    )
    asked = time.monotonic()
    second = requeued_with_progress(run, 2, within=60)
    cluster.wait(urgent, {"COMPLETED"}, 60)
    took, bound = time.monotonic() - asked, 60
    say(f"preempted, saved, node handed over: took {took:.0f} s, bound {bound} s")
    assert second > first and took < bound
    assert f"resumed from {run.folder}/checkpoints/step_{first:06d}" in run.log()
    # Mostly before the third attempt begins: it starts nothing.
    (run.folder / "STOP").touch()
    run.finish(150)
    assert "file STOP" in run.log()
    assert run.steps() == list(range(1, run.steps()[-1] + 1))
    state = json.loads(nemo_rl("status", str(run.number), "--json"))
    assert (state["state"], "file STOP" in state["why"]) == ("stopped", True)
    assert [a["exit_code"] for a in state["attempts"]] == [75, 75, 0]
    say("stopped by the file STOP")


@pytest.mark.slow
def test_scancel_saves_and_does_not_requeue(cluster, slow_run):
    run = slow_run()
    run.until(lambda: len(run.steps()) >= 2, 150)
    asked = time.monotonic()
    cluster.run("scancel", str(run.number))
    job = cluster.wait(run.number, FINISHED, 60)
    took, bound = time.monotonic() - asked, 40
    print(f"from scancel to the end: took {took:.0f} s, bound {bound} s")
    assert job["JobState"] == "CANCELLED" and job["Restarts"] == "0" and took < bound
    saved = (run.folder / "PROGRESS").read_text().strip()
    assert int(saved.rpartition("step_")[2]) == run.steps()[-1]


@pytest.mark.slow
def test_slurms_warning_saves_requeues_and_resumes(cluster, slow_run):
    """USR2, which SLURM sends 30 to 90 s before the end, stops a run that has time."""
    run = slow_run(margin=0, signal="USR2@30")
    run.until(lambda: run.steps(), 150)
    limit = (ran_s(cluster, run) + 100) // 60 + 1  # Minutes; at least 100 s are left.
    update = ["scontrol", "update", f"jobid={run.number}"]
    cluster.run(*update, f"timelimit={limit}")
    saved = requeued_with_progress(run, 1, within=180)
    assert "USR2: time is nearly up" in run.log()
    assert "another step does not fit" not in run.log()
    cluster.run(*update, "timelimit=30")
    run.until(lambda: run.steps()[-1] > saved, 150)
    (run.folder / "STOP").touch()
    assert run.finish(60)["Restarts"] == "1"
