"""JSONL: rows by place, and the line number of everything that is none."""

import json
import pickle
import tracemalloc

import pytest

from nemo_rl.data.datasets import jsonl
from nemo_rl.data.datasets.jsonl import JsonlDataset
from nemo_rl.utils.exceptions import DataError


def test_rows_remember_their_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\n', encoding="utf-8")
    rows = JsonlDataset(file)
    assert [rows[i]["prompt"] for i in range(len(rows))] == ["a\u2028b", "c"]
    assert rows.describe_row(1) == f"{file}, line 3"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', r"a.jsonl, line 2: not JSON .*column 7"),
        ("a.jsonl", "[1]\n", "line 1: expected an object, got list"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        JsonlDataset(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        JsonlDataset(tmp_path / "absent.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xe9"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8 .byte 0xe9 at column 8"):
        JsonlDataset(tmp_path / "b.jsonl")


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n \n"])
def test_every_way_a_file_may_end(tmp_path, end):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}' + end.encode())
    rows = JsonlDataset(file)
    assert [rows[i]["a"] for i in range(len(rows))] == [1, 2]
    with pytest.raises(IndexError):
        rows[2]


def test_an_empty_file_has_no_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert len(JsonlDataset(tmp_path / "a.jsonl")) == 0


def test_a_large_file_is_checked_at_both_ends_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_CHUNK", 1000)
    monkeypatch.setattr(jsonl, "CHECKED_BYTES", 1000)
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"n": n, "text": "x" * (n % 97)}) for n in range(6000)]
    lines[5000] = "{"
    file.write_text("\n".join(lines))
    tracemalloc.start()
    rows = JsonlDataset(file)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 300_000 < file.stat().st_size
    assert len(rows) == 6000 and rows[5999]["n"] == 5999
    with pytest.raises(DataError, match="a.jsonl, line 5001: not JSON"):
        rows[5000]
    file.write_text("\n".join([*lines[:5999], '{"n": 5']))
    with pytest.raises(DataError, match="line 6000: not JSON .*column 8"):
        JsonlDataset(file)


def test_a_file_cut_short_while_it_is_open(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    rows = JsonlDataset(file)
    file.write_text('{"a": 1}\n{"')
    assert rows[0] == {"a": 1}
    with pytest.raises(DataError, match="line 2: the file was cut short"):
        rows[1]


def test_a_copy_in_another_process_opens_the_file_itself(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    copy = pickle.loads(pickle.dumps(JsonlDataset(tmp_path / "a.jsonl")))
    assert copy[0] == {"a": 1} and copy.describe_row(0).endswith("line 1")
