"""A published folder appears whole or not at all, and an earlier one survives."""

from __future__ import annotations

import pytest

from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.publish import publish_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def writer(text, seen=None):
    def write(folder):
        if seen is not None:
            seen.append(folder)
        (folder / "file").write_text(text)

    return write


def test_folder_appears_under_its_name_alone(tmp_path):
    seen = []
    final = tmp_path / "deep" / "model"
    assert publish_folder(final, writer("one", seen)) == final
    assert (final / "file").read_text() == "one"
    assert names(final.parent) == ["model"]
    # It was filled under a hidden name beside it.
    assert seen[0].parent == final.parent
    assert seen[0].name.startswith(".model")


def test_earlier_folder_is_replaced_entirely(tmp_path):
    final = tmp_path / "model"
    publish_folder(final, writer("one"))
    (final / "stale").write_text("x")
    publish_folder(final, writer("two"))
    assert names(final) == ["file"]
    assert (final / "file").read_text() == "two"
    assert names(tmp_path) == ["model"]


def test_earlier_folder_stands_until_the_new_one_is_whole(tmp_path):
    final = tmp_path / "model"
    publish_folder(final, writer("one"))

    def look(folder):
        assert (final / "file").read_text() == "one"
        (folder / "file").write_text("two")

    publish_folder(final, look)
    assert (final / "file").read_text() == "two"


@pytest.mark.parametrize("error", [OSError("no space"), ValueError("bug")])
def test_failure_leaves_the_earlier_folder_and_nothing_else(tmp_path, error):
    final = tmp_path / "model"
    publish_folder(final, writer("one"))

    def fail(folder):
        (folder / "file").write_text("half")
        raise error

    expected = CheckpointError if isinstance(error, OSError) else ValueError
    with pytest.raises(expected, match="no space|bug") as caught:
        publish_folder(final, fail)
    if expected is CheckpointError:
        assert "model could not be written" in str(caught.value)
    assert (final / "file").read_text() == "one"
    assert names(tmp_path) == ["model"]


def test_leftover_of_an_earlier_try_is_cleared(tmp_path):
    import os

    leftover = tmp_path / f".model.tmp-{os.getpid()}"
    leftover.mkdir()
    (leftover / "old").write_text("x")
    publish_folder(tmp_path / "model", writer("one"))
    assert names(tmp_path / "model") == ["file"]
    assert names(tmp_path) == ["model"]


def test_place_that_is_a_file_is_a_checkpoint_error(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(CheckpointError, match="could not be written"):
        publish_folder(tmp_path / "taken" / "model", writer("one"))
