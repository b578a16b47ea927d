"""SAVE and STOP are seen, and taken away when they were obeyed."""

from __future__ import annotations

from nemo_rl.infra.touch_files import TouchFiles


def test_without_a_folder_nobody_asks():
    files = TouchFiles(None)
    assert not files.save and not files.stop
    files.saved()
    files.stopped()


def test_files_are_obeyed_once(tmp_path):
    files = TouchFiles(tmp_path)
    assert not files.save and not files.stop
    for name in ("SAVE", "STOP"):
        (tmp_path / name).touch()
    assert files.save and files.stop
    files.saved()
    files.saved()
    files.stopped()
    assert not files.save and not files.stop
    assert [path.name for path in tmp_path.iterdir()] == ["STOPPED"]
