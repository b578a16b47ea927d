"""Tests of nemo_rl.launch.failure: the record, its words, which one is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nemo_rl.launch import failure as failures
from nemo_rl.launch.failure import Failure, last_lines, read, record, rewrite

WORKER = Failure(
    node="n1",
    process="worker",
    rank=3,
    group="TrainingWorker",
    pid=77,
    message="The worker of rank 3 on host n1 died in train(): no reason given.",
    phase="training",
    lines=("step 4", "step 5"),
)


def test_the_first_failure_is_kept(tmp_path):
    assert record(tmp_path, WORKER)
    assert not record(tmp_path, Failure(node="n2", process="driver", message="later"))
    assert read(tmp_path) == WORKER
    rewrite(tmp_path, replace(WORKER, cause="because"))
    assert read(tmp_path).cause == "because"
    content = json.loads((tmp_path / failures.FAILURE).read_text())
    assert content["summary"].startswith("node n1: worker of rank 3")


def test_half_a_record_is_none(tmp_path):
    assert read(tmp_path) is None
    for text in ("", '{"node": "n1"', "[]", '{"node": "n1"}'):
        (tmp_path / failures.FAILURE).write_text(text)
        assert read(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "node n1: worker of rank 3 (TrainingWorker), process 77, is gone"),
        ({"exit_code": 137}, "process 77, was killed by SIGKILL"),
        ({"exit_code": 3}, "process 77, ended with exit code 3"),
        (
            {"raised": True, "message": 'KeyError: "x"\nmore', "rank": None},
            "node n1: worker, process 77, failed: KeyError: 'x'",
        ),
        (
            {"process": "node", "message": "node n1 is lost: no sign of life"},
            "node n1 is lost: no sign of life",
        ),
    ],
)
def test_one_line_says_who_and_how(changes, text):
    assert replace(WORKER, **changes).summary.endswith(text)


def test_the_kernel_explains_a_death_but_no_exception():
    kernel = ["kernel: Out of memory: Killed process 77 (ray::Worker)"]
    dead = WORKER.explained(kernel)
    assert "OOM killer" in dead.cause and dead.evidence == kernel[0]
    assert "--mem" in dead.cure and dead.again
    assert dead.signal == "SIGKILL"
    mistake = replace(WORKER, raised=True, message="KeyError: 'x'").explained(kernel)
    assert (mistake.cause, mistake.again) == ("", False)
    xid = ["kernel: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."]
    message = "CUDA error: unspecified launch failure"
    gpu = replace(WORKER, raised=True, message=message).explained(xid)
    assert gpu.cause == "a GPU stopped answering" and gpu.again


def test_the_last_words_tell_the_signal():
    lines = ("logging.cc:474: *** SIGSEGV received at time=1 on cpu 1 ***", "Fatal")
    found = replace(WORKER, lines=lines).explained()
    assert (found.cause, found.signal) == ("native code crashed", "SIGSEGV")


def test_warnings_of_a_log_are_no_cause():
    lines = ("Failed to connect to GCS at address 1.2.3.4:5 within 5 seconds.",)
    assert "killed without" in replace(WORKER, lines=lines).explained().cause
    killed = replace(WORKER, exit_code=137, lines=("No module named foo",))
    assert "killed without" in killed.explained().cause
    oom = replace(WORKER, exit_code=137, lines=("error: Detected 1 oom_kill event",))
    assert "OOM killer" in oom.explained().cause
    mistake = replace(WORKER, exit_code=1, lines=("No module named foo",))
    assert "a library is missing" in mistake.explained().cause


def test_without_evidence_it_says_how_to_find_some():
    text = replace(WORKER, exit_code=137).explained().cure
    assert "dmesg" in text and "sacct" in text and "on n1" in text
    node = Failure(node="n2", process="node", message="node n2 is lost").explained()
    assert "scontrol show node n2" in node.cure and node.again


def test_an_exceptions_own_advice_is_kept():
    message = "CUDA out of memory.\nWhat to do: halve the batch."
    found = replace(WORKER, raised=True, message=message).explained()
    assert (found.cure, found.again) == ("halve the batch.", False)


def test_the_block_is_whole_and_not_wide():
    long = replace(WORKER, cause="a cause " * 30, logs="/a/folder")
    text = long.block(attempt="5.0")
    assert text.startswith("---- first failure of attempt 5.0 ---")
    for part in (*("failed ", "when ", "in phase training", "message "), "step 5"):
        assert part in text
    assert all(len(line) <= failures.WIDTH for line in text.splitlines())
    assert "to do" not in text  # Nothing is better than a blank.


def test_last_lines_are_bounded():
    text = "\n".join(["", *("x" * 500 for _ in range(30)), "end", ""])
    lines = last_lines(text)
    assert (len(lines), lines[-1], len(lines[0])) == (20, "end", 300)
