"""Two nodes of one machine; the local watchdog is in functional/test_watchdog.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from nemo_rl.launch import watchdog
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.watchdog import NodeWatchdog
from nemo_rl.utils import pulse

PROGRAM = """
import sys, time
from nemo_rl.utils import pulse

name, what, limit = sys.argv[1:]
limits = {"hang_timeout_s": float(limit)} if limit else {}
pulse.start(name, answers_hang=name == "driver", **limits)
with pulse.doing(what):
    print("ready", flush=True)
    time.sleep(100)
"""
LIMIT_S = 1.0


class Node:
    def __init__(self, folder, name, names):
        self.board = Bulletin(folder / "attempt", name)
        self.pulses = folder / f"pulses-{name}"
        self.dog = NodeWatchdog(self.board, names, self.pulses)
        self.processes = []

    def start(self, name, what, limit=""):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name, what, limit],
            env={**os.environ, pulse.FOLDER: str(self.pulses)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    def beat(self):
        self.dog.attend()
        self.board.beat("training")


@pytest.fixture
def nodes(tmp_path):
    names = ("head", "other")
    found = [Node(tmp_path, name, names) for name in names]
    yield found
    for process in (p for node in found for p in node.processes):
        process.kill()
        process.communicate()


def until_told(head, other, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        other.beat()
        head.beat()
        if text := head.dog.look():
            return text
        time.sleep(0.05)
    raise AssertionError("nothing was told")


def test_a_hang_is_told_of_explained_and_ended(nodes, monkeypatch):
    head, other = nodes
    driver = head.start("driver", "training", str(LIMIT_S))
    head.start("PolicyWorker rank 0", "train")
    stuck = other.start("PolicyWorker rank 1", "save")
    warning = until_told(head, other)
    assert "(limit 1 s)" in warning and head.dog.verdict is None
    text = until_told(head, other)
    assert "asking the driver to save" in text
    assert "PolicyWorker rank 1 on other" in text
    assert head.dog.verdict is not None
    written = (head.board.path("stacks") / "other.txt").read_text()
    assert f"process {stuck.pid} on other: save for" in written
    assert (head.board.path("stacks") / "head.txt").is_file()
    deadline = time.monotonic() + 20
    while driver.poll() is None and time.monotonic() < deadline:
        assert head.dog.look() == ""
        time.sleep(0.05)
    assert driver.poll() == 1
    assert "Hung" in driver.stderr.read()
    assert not head.dog.overdue
    monkeypatch.setattr(watchdog, "SAVE_S", 0.0)
    assert head.dog.overdue


def test_what_moves_is_left_alone(nodes):
    head, other = nodes
    head.start("driver", "training", str(LIMIT_S))
    began, count = time.monotonic(), 0
    while time.monotonic() - began < 3 * LIMIT_S:
        count += 1
        record = {"name": "worker", "pid": os.getpid(), "count": count}
        other.pulses.mkdir(exist_ok=True)
        (other.pulses / "1.json").write_text(json.dumps(record))
        other.beat()
        head.beat()
        assert head.dog.look() == ""
    assert count > 3


def test_a_node_that_cannot_answer_does_not_keep_the_others_waiting(nodes, monkeypatch):
    head, other = nodes
    monkeypatch.setattr(watchdog, "GATHER_S", 0.5)
    head.start("driver", "training", str(LIMIT_S))
    other.beat()
    deadline = time.monotonic() + 20
    while not (text := head.dog.look()):
        head.beat()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "driver on head" in text
