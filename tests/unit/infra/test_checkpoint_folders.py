"""Reading checkpoints without a lock. Damage is covered in test_checkpointing."""

from __future__ import annotations

import pytest

from nemo_rl.infra.checkpoint_folders import (
    as_json,
    check_fingerprint,
    find_newest,
    recover,
    remove_tree,
    step_name,
    steps_in,
)
from nemo_rl.infra.manifest import write_manifest
from nemo_rl.utils.exceptions import CheckpointError


def write(directory, step):
    path = directory / step_name(step)
    path.mkdir()
    (path / "x").write_text("x")
    write_manifest(path, step=step, fingerprint={}, metrics={})
    return path


def test_steps_beyond_six_digits_are_in_order(tmp_path):
    for step in (999_999, 1_000_000, 5):
        write(tmp_path, step)
    (tmp_path / "step_12_notes").mkdir()
    (tmp_path / ".step_000007.tmp-1").mkdir()
    assert steps_in(tmp_path) == [5, 999_999, 1_000_000]
    assert find_newest(tmp_path)[0].step == 1_000_000
    assert steps_in(tmp_path / "absent") == []


def test_a_checkpoint_without_a_state_has_an_empty_one(tmp_path):
    write(tmp_path, 5)
    found, damage = find_newest(tmp_path)
    assert found.state == {} and damage == {}


def test_nothing_is_none(tmp_path):
    assert find_newest(tmp_path / "absent") == (None, {})


def test_fingerprint_differences_are_all_named():
    check_fingerprint("p", {"a": 1}, {"a": 1})
    with pytest.raises(CheckpointError) as error:
        check_fingerprint("p", {"a": 1, "b": 2}, {"a": 3, "c": 4})
    for line in (
        "a: the checkpoint has 1, this run has 3",
        "b: the checkpoint has 2, this run has None",
        "c: the checkpoint has None, this run has 4",
    ):
        assert line in str(error.value)


def test_recover_leaves_other_hidden_files(tmp_path):
    (tmp_path / ".lock").write_text("x")
    (tmp_path / ".step_000007.trash-1").mkdir()
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_remove_tree_of_nothing_is_quiet(tmp_path, caplog):
    remove_tree(tmp_path / "absent")
    assert not caplog.messages


def test_as_json_makes_lists_and_texts(tmp_path):
    assert as_json({"a": (1, 2), "b": tmp_path}) == {"a": [1, 2], "b": str(tmp_path)}
