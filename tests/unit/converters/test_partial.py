"""The hidden folder of an unfinished result: lock, journal, name."""

from __future__ import annotations

import pytest

from nemo_rl.converters.partial import PartialFolder, partial_of, sweep
from nemo_rl.utils.exceptions import CheckpointError

WORK = {"parts": 3, "files": {"a": [1, 2], "b": [3, 4]}, "dtype": None}


def begin(target, work=WORK, resume=False):
    return PartialFolder(target, work, resume=resume)


def test_a_result_gets_its_name_and_nothing_else_stays(tmp_path):
    target = tmp_path / "deep" / "out"
    partial = begin(target)
    (partial.result / "file").write_text("x")
    assert not target.exists()
    partial.publish()
    assert [p.name for p in target.parent.iterdir()] == ["out"]
    assert (target / "file").read_text() == "x"


def test_what_is_recorded_is_there_after_a_stop(tmp_path):
    partial = begin(tmp_path / "out")
    partial.record({1: {"w": "abc"}})
    partial.close()
    with pytest.raises(CheckpointError, match="1 of 3 weights .* --resume, or remove"):
        begin(tmp_path / "out")
    journal = partial_of(tmp_path / "out") / "journal"
    with open(journal, "a") as file:
        file.write('[2, {"w": "to')  # as a kill leaves it
    again = begin(tmp_path / "out", resume=True)
    assert again.done == {1: {"w": "abc"}}
    again.record({2: {"w": "def"}})
    again.close()
    assert begin(tmp_path / "out", resume=True).done == {
        1: {"w": "abc"},
        2: {"w": "def"},
    }


def test_other_work_is_not_continued(tmp_path):
    begin(tmp_path / "out").close()
    other = WORK | {"files": {"a": [1, 2], "b": [3, 5]}, "dtype": "float16"}
    with pytest.raises(CheckpointError) as error:
        begin(tmp_path / "out", other, resume=True)
    assert "dtype was None, is float16; files: b changed" in str(error.value)
    begin(tmp_path / "out", resume=True).close()


def test_one_process_at_a_time(tmp_path):
    first = begin(tmp_path / "out")
    with pytest.raises(CheckpointError, match="another process is writing"):
        begin(tmp_path / "out", resume=True)
    first.close()
    begin(tmp_path / "out", resume=True).remove()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_before_the_journal_leaves_nothing_to_continue(tmp_path):
    place = partial_of(tmp_path / "out")
    (place / "result").mkdir(parents=True)
    (place / "result" / "old").touch()
    assert list(begin(tmp_path / "out").result.iterdir()) == []


def test_a_kill_after_the_name_leaves_nothing_of_worth(tmp_path):
    partial = begin(tmp_path / "out")
    sweep(tmp_path / "out")
    assert partial.place.exists()
    partial.result.rename(tmp_path / "out")
    sweep(tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_damaged_journal_says_what_to_do(tmp_path):
    begin(tmp_path / "out").close()
    (partial_of(tmp_path / "out") / "journal").write_text("{}\nnonsense\n")
    with pytest.raises(CheckpointError, match="journal is damaged .* Remove"):
        begin(tmp_path / "out", resume=True)


def test_a_name_that_was_taken_is_not_overwritten(tmp_path):
    partial = begin(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="made by somebody else"):
        partial.publish()
