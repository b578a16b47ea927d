from __future__ import annotations

import json
import os
import signal
import time

import pytest

from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import Hung


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(pulse.FOLDER, str(tmp_path))
    yield tmp_path
    pulse.stop()
    signal.signal(pulse.HANG, signal.SIG_DFL)


def record(folder):
    return json.loads((folder / f"{os.getpid()}.json").read_text())


def test_a_record_says_what_is_done_and_counts_it(folder):
    pulse.start("driver", limit=3)
    assert record(folder) == {
        "name": "driver",
        "pid": os.getpid(),
        "count": 0,
        "doing": "idle",
        "since": pytest.approx(time.time(), abs=5),
        "limit": 3,
    }
    with pulse.doing("training"):
        with pulse.doing("a part"):
            assert record(folder)["doing"] == "a part"
        assert record(folder)["doing"] == "training"
    assert (record(folder)["doing"], record(folder)["count"]) == ("idle", 4)


def test_counting_reaches_the_file_within_half_a_second(folder):
    pulse.start("worker")
    for _ in range(1000):
        pulse.beat()
    assert record(folder)["count"] < 1000
    time.sleep(pulse.EVERY_S)
    pulse.beat()
    assert record(folder)["count"] == 1001


def test_a_forked_child_leaves_its_parents_record_alone(folder):
    pulse.start("driver")
    if (child := os.fork()) == 0:
        pulse.beat()
        with pulse.doing("something of its own"):
            os._exit(0)
    os.waitpid(child, 0)
    assert record(folder)["count"] == 0
    assert [path.name for path in folder.glob("*.json")] == [f"{os.getpid()}.json"]


def test_hung_is_raised_once_and_not_after_it_was_acknowledged(folder):
    pulse.start("driver", answers_hang=True)
    with pytest.raises(Hung, match=r"cluster\.hang_timeout_s") as caught:
        signal.raise_signal(pulse.HANG)
    assert caught.value.exit_code == 75
    pulse.acknowledge()
    signal.raise_signal(pulse.HANG)
    assert record(folder)["acknowledged"] is True


def test_inside_ray_hung_waits_until_ray_has_returned(folder):
    pulse.start("driver", answers_hang=True)
    pulse.check()
    source = "import signal\nsignal.raise_signal(number)"
    exec(compile(source, "/lib/ray/_private/worker.py", "exec"), {"number": pulse.HANG})
    with pytest.raises(Hung):
        pulse.check()
    pulse.acknowledge()
    pulse.check()


def test_stacks_are_written_on_a_signal(folder):
    pulse.start("worker")
    signal.raise_signal(pulse.STACKS)
    text = (folder / f"{os.getpid()}.stacks").read_text()
    assert "test_stacks_are_written_on_a_signal" in text


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(pulse.FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    pulse.start("driver", answers_hang=True)
    with pulse.doing("training"):
        pulse.beat()
    pulse.acknowledge()
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(pulse.HANG) == signal.SIG_DFL
