"""Tests of nemo_rl.launch.guard: an agent in a process of its own is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_rl.launch.failure import read

GUARDED = """
import os, subprocess, sys, time
from pathlib import Path
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.ending import Ending
from nemo_rl.launch.guard import bury, stand_guard
run_dir, index, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
job = Allocation(job_id=5, node_index=index, num_nodes=2, node_names=("n0", "n1"),
                 num_cpus=1, num_gpus=0, memory_mb=1)
board = Bulletin(run_dir / "at", job.node_name)
ending = Ending(job, board, run_dir=run_dir, temp_dir=run_dir / "temp")
dead = stand_guard()
if dead is not None:
    sys.exit(bury(ending, *dead, requeue=75))
sleep = subprocess.Popen(["sleep", "1000"], start_new_session=True)
if how == "ended":
    board.publish("exit_code", 0)
    sleep.kill()
    sys.exit(0)
if how == "error":
    sys.exit(7)
(run_dir / "pids.tmp").write_text(f"[{os.getpid()}, {sleep.pid}]")
(run_dir / "pids.tmp").rename(run_dir / "pids")
time.sleep(1000)
"""


@pytest.fixture
def start(tmp_path):
    running = []

    def start(index, how):
        words = [sys.executable, "-c", GUARDED, str(tmp_path), str(index), how]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()


def pids(folder):
    deadline = time.monotonic() + 60
    while not (folder / "pids").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return json.loads((folder / "pids").read_text())


def gone(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"  # Nobody has asked for it yet.


@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_agent_is_told_and_takes_all_with_it(start, tmp_path, index):
    guard = start(index, "wait")
    agent, sleep = pids(tmp_path)
    os.kill(agent, signal.SIGKILL)
    text, _ = guard.communicate(timeout=30)
    assert guard.returncode == 75
    assert gone(agent) and gone(sleep)
    found = read(tmp_path / "at")
    assert (found.node, found.process, found.signal) == (
        f"n{index}",
        "agent",
        "SIGKILL",
    )
    assert found.pid == agent
    status = tmp_path / "at" / "nodes" / f"n{index}.json"
    if index == 0:  # The head's word is the job's.
        assert (tmp_path / "at" / "exit_code").read_text() == "75"
        assert f"node n0: agent, process {agent}, was killed by SIGKILL" in text
    else:
        assert json.loads(status.read_text())["state"] == "failed"


def test_a_signal_is_for_the_agent(start, tmp_path):
    guard = start(1, "wait")
    agent, _ = pids(tmp_path)
    guard.terminate()
    os.kill(agent, signal.SIGTERM)
    guard.wait(timeout=30)
    assert read(tmp_path / "at").signal == "SIGTERM"


def test_an_agent_dies_with_its_guard(start, tmp_path):
    guard = start(1, "wait")
    agent, sleep = pids(tmp_path)
    guard.kill()
    guard.wait(timeout=30)
    deadline = time.monotonic() + 30
    while not gone(agent):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(sleep, signal.SIGKILL)


def test_an_end_in_order_is_left_as_it_is(start, tmp_path):
    guard = start(0, "ended")
    guard.wait(timeout=30)
    assert (guard.returncode, read(tmp_path / "at")) == (0, None)


def test_an_agent_that_gives_up_without_a_word(start, tmp_path):
    guard = start(1, "error")
    guard.wait(timeout=30)
    assert read(tmp_path / "at").summary.endswith("ended with exit code 7")
