"""Files by their ending; test_malformed.py has the ones that cannot be read."""

import json

from nemo_rl.data.datasets.files import READERS, open_file

ROWS = [{"prompt": "a,\n b", "answer": "007"}, {"prompt": "ü", "answer": ""}]


def written(tmp_path, ending, datasets):
    path = tmp_path / f"rows{ending}"
    if ending in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif ending == ".json":
        path.write_text(json.dumps(ROWS))
    elif ending == ".csv":
        path.write_text('prompt,answer\n"a,\n b",007\n\nü,\n', encoding="utf-8-sig")
    elif ending == ".tsv":
        path.write_text('prompt\tanswer\n"a,\n b"\t007\nü\t\n')
    elif ending == ".parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    else:
        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
        return next((tmp_path / "saved").glob("*.arrow"))
    return path


def test_every_ending_gives_the_same_rows(tmp_path, datasets):
    for ending in READERS:
        path = written(tmp_path, ending, datasets)
        rows = open_file(path)
        assert [rows[i] for i in range(len(rows))] == ROWS, ending
        assert str(path) in rows.describe_row(1), ending


def test_places(tmp_path, datasets):
    described = {
        ending: open_file(written(tmp_path, ending, datasets)).describe_row(1)
        for ending in (".json", ".csv", ".tsv", ".parquet")
    }
    assert [text.rpartition(", ")[2] for text in described.values()] == [
        "entry 1", "line 5", "line 4", "row 1",
    ]  # fmt: skip


def test_long_values_of_a_table(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"prompt\n{'x' * 300_000}\n")
    assert len(open_file(path)[0]["prompt"]) == 300_000
