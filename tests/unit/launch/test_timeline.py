"""Tests of nemo_rl.launch.timeline."""

from __future__ import annotations

import time

from nemo_rl.launch import timeline
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.timeline import DriverMoments, Moment, handed, intervals, read


def test_the_last_node_counts_and_the_order_is_that_of_time(tmp_path):
    head, worker = Bulletin(tmp_path, "a"), Bulletin(tmp_path, "b")
    variables = {"NEMO_RL_JOB_BEGAN": "1000.5", "NEMO_RL_STEP_BEGAN": "1001.25"}
    head.reached("agent", **handed(variables))
    worker.reached("agent", **handed(variables))
    head.reached("checked")
    (tmp_path / timeline.CLOSED).write_text(f"{time.time() + 60:.6f}\n")
    found = read(tmp_path)
    assert [one.name for one in found] == ["job", "srun", "agent", "checked", "closed"]
    assert [one.at for one in found[:2]] == [1000.5, 1001.25]
    assert found[2].node == "b"
    first, second = intervals(found)[:2]
    assert first[1:] == (0, 0) and second[1:] == (0.75, 0.75)


def test_a_moment_stays_in_the_status_of_its_node(tmp_path):
    node = Bulletin(tmp_path, "a")
    node.beat("training", "fine")
    node.reached("released")
    node.beat("failed", "no")
    status = node.node_status("a")
    assert status["state"] == "failed" and "released" in status["reached"]
    assert status["beat"] == 3


def test_what_the_driver_reached_first_is_written_once(tmp_path):
    path = tmp_path / timeline.DRIVER
    moments = DriverMoments(path)
    moments.on_train_begin(None)
    moments.on_step_end(None, 1, {})
    before = read(tmp_path)
    moments.on_step_end(None, 2, {})
    assert [one.name for one in before] == ["ready", "stepped"]
    assert read(tmp_path) == before
    DriverMoments(None).reached("ready")  # Nobody asked: nothing is written.


def test_an_attempt_of_an_older_version_has_none(tmp_path):
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "a.json").write_text('{"state": "training"}')
    (tmp_path / timeline.CLOSED).write_text("torn")
    assert read(tmp_path) == [] and intervals([]) == []
    assert handed({"NEMO_RL_JOB_BEGAN": ""}) == {}
    assert Moment("else", 1.0).meaning == "else"
