"""Tests of nemo_rl.launch.account: what a driver tells, and what it does not."""

from __future__ import annotations

import json

import pytest

from nemo_rl.distributed.failures import dead_worker, foreign_error
from nemo_rl.distributed.worker_shell import Place
from nemo_rl.infra.hang import Verdict
from nemo_rl.launch.account import (
    Account,
    attempt_tail,
    of_driver,
    of_hang,
    of_ray,
    of_slurm,
)

NAMES = ("n0", "n1")


def told(path, error):
    with pytest.raises(type(error)), Account(path):
        raise error
    account = json.loads(path.read_text())
    return of_driver("n0", 1, account, names=NAMES, tail=("printed",), pid=9)


def test_a_dead_worker_is_told_with_its_own_log(tmp_path):
    place = Place(host="n1.cluster.org", address="1.2.3.4", node_id="ab", pid=7)
    error = dead_worker("train", "", rank=3, place=place, log_tail="one\ntwo")
    error.place["group"] = "TrainingWorker"
    found = told(tmp_path / "account.json", error)
    assert (found.node, found.process, found.rank, found.pid) == ("n1", "worker", 3, 7)
    assert (found.group, found.raised) == ("TrainingWorker", False)
    assert found.lines == ("one", "two")
    assert "Last lines" not in found.message
    assert found.explained().again


def test_a_worker_that_raised_is_told_with_its_traceback(tmp_path):
    error = foreign_error("train", "KeyError: 'x'", rank=1, host="n1", trace="a\nb")
    found = told(tmp_path / "account.json", error)
    assert (found.node, found.rank, found.raised) == ("n1", 1, True)
    assert (found.lines, found.explained().again) == (("a", "b"), False)


def test_an_exception_of_the_driver_itself(tmp_path):
    found = told(tmp_path / "account.json", RuntimeError("no idea"))
    assert (found.node, found.process, found.exit_code) == ("n0", "driver", 1)
    assert found.message == "RuntimeError: no idea"
    assert found.lines[-1] == "RuntimeError: no idea"
    assert "test_account.py" in found.lines[1]


def test_a_driver_that_is_gone_told_nothing():
    found = of_driver("n0", 137, None, names=NAMES, tail=("step 1",), pid=9)
    assert found.summary == "node n0: driver, process 9, was killed by SIGKILL"
    assert (found.lines, found.raised) == (("step 1",), False)


def test_ray_names_its_daemon():
    tail = [
        "Some Ray subprocesses exited unexpectedly:",
        "  raylet [exit code=-9]",
        "end",
    ]
    found = of_ray("n1", 1, tail, pid=5)
    assert found.summary == "node n1: raylet was killed by SIGKILL"
    assert found.pid is None  # It is that of `ray start`.
    alone = of_ray("n1", 7, ["no space left on device"], pid=5).explained()
    assert alone.summary == "node n1: ray start, process 5, ended with exit code 7"
    assert alone.cause == "a disk is full"


def test_only_exceptions_are_written(tmp_path):
    with pytest.raises(KeyboardInterrupt), Account(tmp_path / "account.json"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="x"), Account(None):
        raise ValueError("x")
    assert not list(tmp_path.iterdir())


def test_the_tail_is_of_this_attempt(tmp_path):
    log = tmp_path / "job.log"
    log.write_text("d job 7: attempt 0: r\nold\nd job 7: attempt 1: r on n0\nnew\n")
    assert attempt_tail(log, 7) == ("new",)
    assert attempt_tail(tmp_path / "none", 7) == ()


@pytest.mark.parametrize(
    ("lines", "node", "cause"),
    [
        (
            [
                "slurmstepd-n0: error: *** STEP 2.0 ON n0 CANCELLED AT x DUE TO NODE "
                "FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***",
                "srun: error: Node failure on n1",
            ],
            "n1",
            "SLURM lost a node",
        ),
        (
            ["slurmstepd: error: *** JOB 2 ON n0 CANCELLED AT x DUE TO PREEMPTION ***"],
            "n0",
            "SLURM gave the nodes to a job of higher priority",
        ),
    ],
)
def test_what_slurm_ended_is_told(lines, node, cause):
    found = of_slurm("n0", ["step 1", *lines, "srun: got SIGCONT"]).explained()
    assert (found.node, found.process, found.cause) == (node, "SLURM", cause)
    assert found.again and node in found.summary


def test_a_cancelled_job_did_not_fail():
    line = "slurmstepd: error: *** STEP 2.0 ON n0 CANCELLED AT 2026-11-21T23:29:13 ***"
    assert of_slurm("n0", [line]) is None


def test_who_hung_is_told():
    text = "It waits for PolicyWorker rank 1 on n1 (process 9), which stopped."
    found = of_hang("n0", Verdict(("PolicyWorker rank 1 on n1",), text)).explained()
    assert (found.node, found.process, found.rank) == ("n1", "worker", 1)
    assert (found.group, found.again) == ("PolicyWorker", True)
    assert text in found.summary and "n1" in found.summary
    assert "hang_timeout_s" in found.cure
    nobody = of_hang("n0", Verdict((), "No process stands out.")).explained()
    assert nobody.summary == (
        "node n0: run failed: the run hung: No process stands out."
    )
