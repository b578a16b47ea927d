"""Tests of nemo_rl.launch.watch: what ends a wait, with real children and signals."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time

import pytest

from nemo_rl.launch import watch
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import EXIT_CODE, Bulletin
from nemo_rl.launch.processes import Child
from nemo_rl.launch.watch import NodeLost, StopRequested, Watcher


@pytest.fixture(autouse=True)
def handlers():
    numbers = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "TICK_S", 0.01)
    monkeypatch.setattr(watch, "BEAT_S", 0.01)

    def build(index):
        job = Allocation(
            job_id=1,
            node_index=index,
            num_nodes=2,
            node_names=("a", "b"),
            num_cpus=1,
            num_gpus=0,
            memory_mb=1,
        )
        options = argparse.Namespace(run_dir=tmp_path)
        return Watcher(job, options, Bulletin(tmp_path / "at", job.node_name))

    return build


def never():
    return None


def test_until_returns_what_it_waited_for_and_beats(make, tmp_path):
    head = make(0)
    seen = Bulletin(tmp_path / "at", "b")
    assert head.until(lambda: seen.node_status("a")["beat"] > 1 or None, 20) is True


def test_a_deadline_says_what_was_waited_for(make):
    with pytest.raises(NodeLost, match="^node b did not join$"):
        make(0).until(never, 0.05, lambda: "node b did not join")


def test_the_death_of_ray_is_told_with_its_last_words(make, tmp_path):
    head = make(0)
    command = ["sh", "-c", "echo no space left; exit 7"]
    head.ray = Child("ray", command, os.environ, tmp_path / "ray.log")
    with pytest.raises(NodeLost, match=r"(?s)node a: .* code 7:\s+no space left"):
        head.until(never, 10)


def test_a_failed_node_reaches_the_head(make, tmp_path):
    head = make(0)
    Bulletin(tmp_path / "at", "b").beat("failed", "node b: Ray ended:\nlog")
    with pytest.raises(NodeLost, match="^node b: Ray ended$"):
        head.until(never, 10)


@pytest.mark.parametrize(("index", "lost"), [(0, "b"), (1, "a")])
def test_a_silent_node_is_named(make, tmp_path, monkeypatch, index, lost):
    monkeypatch.setattr(watch, "SILENCE_LIMIT_S", 0.1)
    watcher = make(index)
    Bulletin(tmp_path / "at", lost).beat("joined")
    with pytest.raises(NodeLost, match=f"node {lost} is lost: no sign of life"):
        watcher.until(never, 10)


def test_after_the_end_silence_is_no_failure(make, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "SILENCE_LIMIT_S", 0.05)
    worker = make(1)
    head = Bulletin(tmp_path / "at", "a")
    head.beat("training")
    head.publish(EXIT_CODE, 0)
    assert worker.until(worker.ended, 10) is True


def test_int_stops_the_agent_and_term_does_not(make):
    node = make(1)
    for _ in range(2):  # It stays for the head's sake.
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(NodeLost, match="over"):
            node.until(never, 0.6, lambda: "over")
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(StopRequested, match="stopped by signal 2") as caught:
        node.until(never, 10)
    assert caught.value.code == 143


@pytest.mark.parametrize("how", ["file", "term"])
def test_a_warning_before_training_requeues(make, tmp_path, how):
    head = make(0)
    if how == "file":
        (tmp_path / "PREEMPT").touch()
    else:
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopRequested, match="before training began") as caught:
        head.until(never, 10)
    assert caught.value.code == 75


@pytest.mark.parametrize("how", ["file", "USR2", "TERM"])
def test_a_warning_while_training_reaches_the_driver_once(make, tmp_path, capsys, how):
    head = make(0)
    script = "trap 'echo saved; exit 75' USR2; echo up; while :; do sleep 0.05; done"
    log = tmp_path / "log"
    # Ignored signals cannot be trapped by a shell, so this one starts clean.
    command = ["env", "--default-signal=USR2", "bash", "-c", script]
    head.driver = Child("driver", command, os.environ, log)
    head.until(lambda: True if "up" in log.read_text() else None, 10)
    if how == "file":
        (tmp_path / "PREEMPT").touch()
    else:
        os.kill(os.getpid(), getattr(signal, f"SIG{how}"))
    assert head.until(lambda: head.driver.returncode, 10) == 75
    assert log.read_text() == "up\nsaved\n"
    assert capsys.readouterr().out.count("asking the driver to save and end") == 1


def test_a_warning_does_not_disturb_a_worker(make, tmp_path):
    (tmp_path / "PREEMPT").touch()
    worker = make(1)
    began = time.monotonic()
    assert worker.until(lambda: time.monotonic() - began > 0.1 or None)


def test_a_roll_call_names_the_node_that_does_not_answer(make, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "ROLL_CALL_S", 0.2)
    head = make(0)
    Bulletin(tmp_path / "at", "b").beat("joined")
    with pytest.raises(NodeLost, match="node b is lost: the driver failed") as caught:
        head.call_roll()
    failure = caught.value.blame("a", "training")
    assert (failure.node, failure.process, failure.phase) == ("b", "node", "training")


def test_a_roll_call_hears_of_a_failed_node(make, tmp_path, monkeypatch):
    head = make(0)
    board = Bulletin(tmp_path / "at", "b")
    board.beat("joined")
    board.beat("failed", "node b: raylet was killed by SIGKILL")
    monkeypatch.setattr(watch, "BEAT_S", 1000.0)  # So that only the end looks.
    head._next_beat = float("inf")
    threading.Timer(0.1, board.beat, ("failed", "node b: raylet was killed")).start()
    with pytest.raises(NodeLost, match="raylet was killed") as caught:
        head.call_roll()
    assert caught.value.blame("a", "").node == "b"
