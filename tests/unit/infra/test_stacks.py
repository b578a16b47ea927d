"""Real processes, asked by real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nemo_rl.infra import stacks
from nemo_rl.utils import pulse

PROGRAM = """
import time
from nemo_rl.utils import pulse

def sleeps_for_ever():
    print("ready", flush=True)
    while True:
        time.sleep(0.1)

pulse.start({name!r}, answers_hang={answers})
with pulse.doing("sampling"):
    sleeps_for_ever()
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(name="worker", answers=False):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(name=name, answers=answers)],
            env={**os.environ, pulse.FOLDER: str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_each_process_says_what_it_is_doing_and_where(start, tmp_path):
    first, second = start("PolicyWorker rank 0"), start("driver")
    found = {one.name: one for one in stacks.ask(tmp_path, "node1")}
    assert set(found) == {"PolicyWorker rank 0", "driver"}
    one = found["PolicyWorker rank 0"]
    assert (one.pid, one.host, one.doing, one.state) == (
        first.pid,
        "node1",
        "sampling",
        "",
    )
    assert one.where == "<string>:8 in sleeps_for_ever"
    assert not one.waits
    assert first.poll() is None and second.poll() is None
    again = stacks.ask(tmp_path, "node1")
    assert again[0].stack.count("sleeps_for_ever") == 1


def test_a_stopped_process_and_one_that_ended(start, tmp_path):
    first, second = start(), start()
    first.send_signal(signal.SIGSTOP)
    second.kill()
    second.wait()
    began = time.monotonic()
    [one] = stacks.ask(tmp_path, "node1", answer_s=0.3)
    assert time.monotonic() - began < 2
    assert (one.pid, one.state, one.stack) == (first.pid, "stopped", "")
    assert one.where == "it did not answer"


def test_progress_changes_with_what_is_done_and_who_lives(start, tmp_path):
    process = start()
    before = stacks.progress(tmp_path)
    assert before == stacks.progress(tmp_path) > 0
    start()
    assert stacks.progress(tmp_path) > before
    process.kill()
    process.wait()
    assert stacks.progress(tmp_path) == before


def test_hung_reaches_only_who_takes_it(start, tmp_path):
    driver, worker = start("driver", answers=True), start()
    stacks.send_hang(tmp_path)
    _, errors = driver.communicate(timeout=10)
    assert "Hung: nothing has moved" in errors
    assert worker.poll() is None


def test_a_process_without_handlers_is_not_signalled(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    record = {"pid": process.pid, "name": "x", "count": 1, "doing": "y", "since": 0}
    (tmp_path / f"{process.pid}.json").write_text(json.dumps(record))
    (tmp_path / f"{process.pid}.stacks").touch()
    (tmp_path / "1.json").write_text("half a rec")
    stacks.ask(tmp_path, "node1", answer_s=0.1)
    stacks.send_hang(tmp_path)
    time.sleep(0.1)
    assert process.poll() is None
    process.kill()
    process.wait()
