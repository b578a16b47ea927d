"""Tests of nemo_rl.launch.bulletin."""

from __future__ import annotations

import time

from nemo_rl.launch.bulletin import EXIT_CODE, HEAD, Bulletin


def test_published_files_are_read_by_others(tmp_path):
    head, worker = Bulletin(tmp_path, "a", ip="1.1.1.1"), Bulletin(tmp_path, "b")
    assert worker.read(HEAD) is None
    head.publish(HEAD, {"address": "1.1.1.1:7"})
    head.publish(EXIT_CODE, 75)
    assert worker.read(HEAD) == {"address": "1.1.1.1:7"}
    assert (tmp_path / EXIT_CODE).read_text() == "75"  # job.sh reads it too
    assert not list(tmp_path.glob("*.tmp"))


def test_status_of_a_node(tmp_path):
    head, worker = Bulletin(tmp_path, "a"), Bulletin(tmp_path, "b", ip="2.2.2.2")
    assert head.node_status("b")["state"] == "missing"
    worker.beat("failed", "out of disk")
    status = head.node_status("b")
    assert (status["state"], status["message"]) == ("failed", "out of disk")
    assert (status["ip"], status["beat"]) == ("2.2.2.2", 1)


def test_silence_is_judged_by_the_readers_clock(tmp_path):
    head, worker = Bulletin(tmp_path, "a"), Bulletin(tmp_path, "b")
    worker.beat("joined")
    assert head.silent(["b"], 0.05) == []
    time.sleep(0.1)
    assert head.silent(["b"], 0.05) == ["b"]
    worker.beat("joined")
    assert head.silent(["b"], 0.05) == []
