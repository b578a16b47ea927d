"""Tests of nemo_rl.launch.ending: two nodes' agents end, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nemo_rl.launch.failure import FAILURE, Failure, read, record

AGENT = """
import json, sys
from pathlib import Path
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.ending import Ending
from nemo_rl.launch.failure import from_json
from nemo_rl.launch.processes import Child
index, code, failure = json.loads(sys.argv[2])
run_dir = Path(sys.argv[1])
job = Allocation(job_id=5, node_index=index, num_nodes=2, node_names=("n0", "n1"),
                 num_cpus=1, num_gpus=0, memory_mb=1)
board = Bulletin(run_dir / "attempts" / "5.0", job.node_name)
temp_dir = run_dir / f"temp-{index}"
logs = temp_dir / "session_latest" / "logs"
logs.mkdir(parents=True)
(logs / "worker-ab-01-7.err").write_text("the token is 0123456789abcdef")
child = Child("sleep", ["sleep", "1000"], {"PATH": "/usr/bin:/bin"})
ending = Ending(job, board, run_dir=run_dir, temp_dir=temp_dir)
ending.run(code, from_json(failure), grace_s=0.1)
print("sleep:", child.returncode, temp_dir.exists())
"""
LOST = Failure(node="n0", process="node", message="node n0 is lost: no sign of life")


@pytest.fixture
def end(tmp_path):
    """Return a function that lets one node's agent end and returns what it prints."""

    def run(index, code, failure=None):
        content = failure and failure.as_json()
        words = [sys.executable, "-c", AGENT, str(tmp_path)]
        words.append(json.dumps([index, code, content]))
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        *text, last = done.stdout.splitlines()
        assert last.startswith("sleep: 1") and last.endswith(" False")
        return "\n".join(text)

    run.folder = tmp_path / "attempts" / "5.0"
    run.folder.mkdir(parents=True)
    return run


def test_the_head_tells_what_the_other_node_knows(end):
    (end.folder / "ray_token").write_text("0123456789abcdef")
    (end.folder / "evidence").mkdir()
    evidence = ["kernel: Out of memory: Killed process 77 (ray::Worker)"]
    lines = ["last words", "with 0123456789abcdef"]
    testimony = {"kernel": evidence, "lines": lines}
    (end.folder / "evidence" / "n1.json").write_text(json.dumps(testimony))
    died = Failure(
        node="n1",
        process="worker",
        rank=1,
        pid=77,
        message="the worker died",
    )
    text = end(0, 75, died)
    assert (
        "failed    node n1: worker of rank 1, process 77, was killed by SIGKILL" in text
    )
    assert "OOM killer" in text and evidence[0] in text
    assert f"logs      {end.folder}/ray-logs-n1" in text
    assert "with ***" in text
    found = read(end.folder)
    assert "OOM killer" in found.cause and found.lines == ("last words", "with ***")
    assert (end.folder / "exit_code").read_text() == "75"
    assert not (end.folder / "ray_token").exists()
    kept = end.folder / "ray-logs-n0" / "worker-ab-01-7.err"
    assert kept.read_text() == "the token is ***"


def test_the_node_of_the_failure_testifies_and_keeps_its_logs(end):
    record(end.folder, Failure(node="n1", process="worker", pid=7, message="died"))
    (end.folder / "exit_code").write_text("75")
    assert end(1, 0) == ""
    found = json.loads((end.folder / "evidence" / "n1.json").read_text())
    assert found["lines"] == ["the token is 0123456789abcdef"]
    assert isinstance(found["kernel"], list)
    assert (end.folder / "ray-logs-n1" / "worker-ab-01-7.err").exists()


def test_the_first_failure_is_told_whoever_comes_later(end):
    first = Failure(node="n1", process="raylet", exit_code=137, message="Ray ended")
    assert end(1, 75, first) == ""
    status = json.loads((end.folder / "nodes" / "n1.json").read_text())
    assert status["state"] == "failed" and "raylet was killed" in status["message"]
    later = Failure(node="n0", process="driver", message="died", exit_code=1)
    text = end(0, 75, later)
    assert "node n1: raylet was killed by SIGKILL" in text and "driver" not in text
    assert read(end.folder).process == "raylet"


def test_where_the_head_is_lost_the_job_log_is_written_by_the_first(end):
    for index in (1, 1):
        assert end(index, 75, LOST) == ""
    log = (end.folder.parents[1] / "job.log").read_text()
    assert log.count("first failure of attempt 5.0") == 1
    assert "node n0 is lost: no sign of life" in log


@pytest.mark.parametrize("code", [0, 2, 75])
def test_an_end_in_order_keeps_no_logs(end, code):
    mistake = Failure(node="n0", process="driver", message="no key", raised=True)
    assert end(0, code, mistake if code == 2 else None) == ""
    assert (end.folder / FAILURE).exists() == (code == 2)
    assert not (end.folder / "ray-logs-n0").exists()
    assert (end.folder / "exit_code").read_text() == str(code)
