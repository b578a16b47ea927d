"""JSONL: rows, and the line number of everything that is none."""

import pytest

from nemo_rl.data.datasets.jsonl import JsonlDataset
from nemo_rl.utils.exceptions import DataError


def test_rows_remember_their_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\n', encoding="utf-8")
    rows = JsonlDataset(file)
    assert [rows[i]["prompt"] for i in range(len(rows))] == ["a\u2028b", "c"]
    assert rows.describe_row(1) == f"{file}, line 3"
    listed = tmp_path / "a.json"
    listed.write_text('[{"prompt": "x"}]')
    assert JsonlDataset(listed).describe_row(0) == f"{listed}, entry 0"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": }\n', r"a.jsonl, line 2: not JSON .*column 7"),
        ("a.jsonl", "[1]\n", "line 1: expected an object, got list"),
        ("a.json", '{"a": 1}', "expected a list of objects"),
        ("a.json", "[1]", "entry 0: expected an object"),
        ("a.json", "[", "line 1: not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        JsonlDataset(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        JsonlDataset(tmp_path / "absent.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        JsonlDataset(tmp_path / "b.jsonl")
