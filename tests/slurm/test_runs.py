"""status, logs, attach, cancel and report on real SLURM jobs.

The jobs are those of the recipe's script and slurm/job.sh; fake_agent.py stands where
the agent would be, so that they take seconds. Every test prints and asserts its bound.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from tests.slurm.workplace import HERE, ROOT

RECIPE = "recipes/grpo_smollm2_cpu.sh"
LONG = ("steps=5000", "step_s=0.05")


@pytest.fixture(scope="module")
def agent_env(short_dir):
    """Environment of jobs in which fake_agent.py is the interpreter."""
    program = short_dir / "fake_python"
    program.write_text(
        f"#!/bin/bash\nexport PYTHONPATH={ROOT}\n"
        f'exec {sys.executable} {HERE / "fake_agent.py"} "$@"\n'
    )
    program.chmod(0o755)
    return {"NEMO_RL_PYTHON": str(program), "NEMO_RL_TMPDIR": str(short_dir)}


@pytest.fixture
def submit(cluster, checkout, agent_env):
    """Return a function that submits the recipe's script; jobs end with the test."""
    numbers = []

    def submit(*arguments):
        numbers.append(cluster.submit(*arguments, cwd=checkout, env=agent_env))
        return numbers[-1]

    yield submit
    cluster.run("scancel", *map(str, numbers), check=False)
    for number in numbers:
        cluster.wait(number, {"COMPLETED", "FAILED", "CANCELLED"}, 60)


@pytest.fixture
def nemo_rl(cluster, checkout):
    """Return a function that gives a command as a user on the login node would."""

    def run(*words, check=True):
        command = [sys.executable, "-m", "nemo_rl.launch", *map(str, words)]
        return cluster.run(*command, cwd=checkout, check=check)

    return run


@contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    print(f"{took:.1f} s, bound {seconds} s")
    assert took < seconds


def state_of(nemo_rl, number):
    return json.loads(nemo_rl("status", number, "--json").stdout)


def until(nemo_rl, number, ready, timeout=60):
    deadline = time.monotonic() + timeout
    while not ready(state := state_of(nemo_rl, number)):
        assert time.monotonic() < deadline, state
        time.sleep(0.5)
    return state


def test_a_run_from_the_queue_to_its_end(cluster, submit, nemo_rl):
    with within(60):
        first = submit("--nodes=4", RECIPE, "steps=40", "step_s=0.1")
        second = submit("--nodes=4", RECIPE, "steps=3")
        running = until(nemo_rl, first, lambda s: (s["step"] or 0) > 2)
        assert running["state"] == "running"
        assert (running["nodes"], running["total_steps"]) == ("node[0-3]", 40)
        assert 0 < running["seconds_left"] <= 3600
        waiting = state_of(nemo_rl, second)
        assert (waiting["state"], waiting["reason"]) == ("waiting", "Resources")
        done = until(nemo_rl, second, lambda s: s["state"] == "done")
        assert [a["exit_code"] for a in done["attempts"]] == [0]
        assert done["checkpoint"].endswith("step_000003")
        table = nemo_rl("status").stdout
        assert f"grpo_smollm2_cpu/{first}" in table
        assert f"grpo_smollm2_cpu/{second}" in table


def test_a_failure_is_told_by_status_logs_and_report(cluster, submit, nemo_rl):
    with within(40):
        number = submit("--nodes=1", RECIPE, "steps=9", "fail_at=4")
        state = until(nemo_rl, number, lambda s: s["state"] == "failed")
        assert state["attempts"][0]["exit_code"] == 1
        assert "driver failed: ValueError: the loss is not finite" in state["why"]
        assert "training diverged" in state["why"]
        log = nemo_rl("logs", number, "--attempt", f"{number}.0").stdout
        assert "ValueError: the loss is not finite" in log
        (node,) = state["attempts"][0]["nodes"]
        assert "Ray began" in nemo_rl("logs", number, "--node", node).stdout
        report = nemo_rl("report", number).stdout
        assert "ValueError: the loss is not finite" in report
        assert "lower the learning rate" in report
        assert "grpo.max_num_steps" in report


@pytest.mark.slow
def test_following_survives_a_requeue_and_ends_with_the_run(
    cluster, checkout, submit, nemo_rl
):
    with within(100):
        number = submit("--nodes=1", RECIPE, "steps=60", "step_s=0.1")
        texts = []

        def follow():
            texts.append(nemo_rl("logs", number, "--follow").stdout)

        until(nemo_rl, number, lambda s: (s["step"] or 0) > 2)
        thread = threading.Thread(target=follow)
        thread.start()
        (checkout / "results" / "grpo_smollm2_cpu" / str(number) / "PREEMPT").touch()
        until(nemo_rl, number, lambda s: len(s["attempts"]) == 2)
        thread.join(80)
        assert not thread.is_alive()
        (text,) = texts
        assert "step 3 of 60" in text
        assert "requeued: the next attempt goes on from" in text
        assert "attempt 1: recipes/grpo_smollm2_cpu.yaml" in text
        assert "step 60 of 60" in text
        codes = [a["exit_code"] for a in state_of(nemo_rl, number)["attempts"]]
        assert codes == [75, 0]


@pytest.mark.slow
def test_a_shell_on_every_node(cluster, submit, nemo_rl):
    with within(40):
        number = submit("--nodes=2", RECIPE, *LONG)
        state = until(nemo_rl, number, lambda s: s["step"])
        for node in state["attempts"][0]["nodes"]:
            words = ("attach", number, "--node", node, "--", "hostname")
            assert nemo_rl(*words).stdout.strip() == node
        wrong = nemo_rl("attach", number, "--node", "nowhere", check=False)
        assert wrong.returncode == 2
        assert "node nowhere does not belong to job" in wrong.stderr
        nemo_rl("cancel", number, "--now")


def test_cancel_saves_first_and_ends_the_chain(cluster, checkout, submit, nemo_rl):
    with within(60):
        first = submit("--nodes=1", RECIPE, *LONG)
        after = f"--dependency=afterany:{first}"
        second = submit("--nodes=1", after, RECIPE, "steps=3")
        third = submit(f"--dependency=afterany:{second}", "--nodes=1", RECIPE)
        until(nemo_rl, first, lambda s: s["step"])
        out = nemo_rl("cancel", first, "--grace", "30").stdout
        assert f"cancelled jobs {second}, {third}, waiting" in out
        assert "last checkpoint: " in out
        assert "step_0" in out.partition("last checkpoint: ")[2]
        job = cluster.job(first)
        # It ended by itself, and did not go back into the queue.
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", "75:0")
        assert job["Restarts"] == "0"
        assert state_of(nemo_rl, first)["state"] == "stopped"
        for number in (second, third):
            assert cluster.job(number)["JobState"] == "CANCELLED"
        again = nemo_rl("cancel", first, check=False)
        assert again.returncode == 2
        assert "none of its jobs is alive" in again.stderr


def test_cancel_now_does_not_wait(cluster, submit, nemo_rl):
    with within(40):
        number = submit("--nodes=1", RECIPE, *LONG)
        until(nemo_rl, number, lambda s: s["step"])
        nemo_rl("cancel", number, "--now")
        state = until(nemo_rl, number, lambda s: s["state"] == "cancelled")
        assert state["checkpoint"] is None


@pytest.mark.slow
def test_a_silent_controller_is_not_the_end_of_a_run(cluster, submit, nemo_rl):
    def tell_controller(signal):
        cluster.run("sh", "-c", f"kill -{signal} $(pidof slurmctld)")

    with within(90):
        number = submit("--nodes=1", RECIPE, *LONG)
        until(nemo_rl, number, lambda s: s["step"])
        tell_controller("STOP")
        try:
            done = nemo_rl("status", number, check=False)
            files = nemo_rl("status", number, "--no-slurm", "--json")
        finally:
            tell_controller("CONT")
        assert done.returncode == 2
        assert "SLURM does not answer squeue" in done.stderr
        assert "Traceback" not in done.stderr
        assert json.loads(files.stdout)["state"] == "running"
        assert until(nemo_rl, number, lambda s: True)["state"] == "running"
        nemo_rl("cancel", number, "--now")


def test_an_unknown_job(cluster, nemo_rl):
    with within(20):
        done = nemo_rl("status", 987654, check=False)
        assert done.returncode == 2
        assert "no run 987654" in done.stderr
