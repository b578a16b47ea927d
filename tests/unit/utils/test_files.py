"""JSONL is cut at a step without losing what is before it."""

from __future__ import annotations

import json

import pytest

from nemo_rl.utils.files import (
    cut_jsonl,
    human_size,
    prepare_jsonl,
    probe_folder,
    write_json,
)


def rows(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write_rows(path, numbers, tail=""):
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in numbers) + tail)


def test_cut_keeps_rows_up_to_the_step_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [0, 1, 2, 3, 2, 4], tail='{"step": 1, "los')
    assert cut_jsonl(path, 2) == 4
    assert rows(path) == [0, 1, 2, 2]


def test_cut_of_nothing_is_nothing(tmp_path):
    assert cut_jsonl(tmp_path / "absent", 3) == 0
    assert not (tmp_path / "absent").exists()


def test_cut_drops_unreadable_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\0\0\0\n[1]\n{"step": 2}\n')
    assert cut_jsonl(path, 5) == 2


def test_a_fresh_run_moves_old_rows_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for expected in (1, 2):
        write_rows(path, [expected])
        prepare_jsonl(path, None)
        assert not path.exists()
        assert rows(tmp_path / f"metrics.earlier-{expected}.jsonl") == [expected]


def test_a_resumed_run_cuts(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    prepare_jsonl(path, 2)
    write_rows(path, [1, 2, 3])
    prepare_jsonl(path, 2)
    assert rows(path) == [1, 2]


def test_write_json_leaves_no_temporary_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_probe_folder_cleans_up_and_reports(tmp_path):
    probe_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        probe_folder(tmp_path / "absent")


def test_human_size():
    assert human_size(12) == "12 bytes"
    assert human_size(1536) == "1.5 KiB"
    assert human_size(3 * 2**40) == "3.0 TiB"
