"""Folders as the hub lays them out, saved ones, and a hub that cannot be reached."""

import pytest

from nemo_rl.data.datasets import load_dataset
from nemo_rl.data.datasets.hub import open_folder, open_hub, pick_split
from nemo_rl.utils.exceptions import ConfigurationError, DataError

ROWS = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]


def test_data_files_tell_their_split(tmp_path, datasets):
    table = datasets.Dataset.from_list(ROWS)
    (tmp_path / "set/data").mkdir(parents=True)
    table.to_parquet(str(tmp_path / "set/data/train-00000-of-00001.parquet"))
    table.select([1]).to_parquet(str(tmp_path / "set/data/test-00000-of-00001.parquet"))
    rows = load_dataset("set", search_dir=tmp_path)
    assert (len(rows), rows[1]) == (2, ROWS[1])
    assert rows.describe_row(1) == f"{tmp_path / 'set'}, row 1"
    assert len(open_folder(tmp_path / "set", "test")) == 1
    with pytest.raises(DataError, match="no split 'tset'; it has train, test. Did you"):
        open_folder(tmp_path / "set", "tset")


def test_subsets(tmp_path, datasets):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one/*\n"
        "- config_name: two\n  data_files: two/*\n---\n"
    )
    assert load_dataset(str(tmp_path), name="one")[0] == {"prompt": "a"}
    with pytest.raises(DataError, match=r"Please pick one among.*'one', 'two'"):
        load_dataset(str(tmp_path))


def test_lines_in_a_folder(tmp_path, datasets):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "validation.jsonl").write_text('{"prompt": "b"}\n')
    assert open_folder(tmp_path, "validation")[0] == {"prompt": "b"}


def test_saved_folders(tmp_path, datasets):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "dev": table}).save_to_disk(
        str(tmp_path / "two")
    )
    for folder, split in (("one", None), ("two", None), ("two", "dev")):
        assert open_folder(tmp_path / folder, split)[0] == ROWS[0]
    with pytest.raises(DataError, match="two has no split 'test'; it has train, dev"):
        open_folder(tmp_path / "two", "test")


def test_the_hub_that_cannot_be_reached_says_how_to_copy(datasets):
    # The tests run with HF_HUB_OFFLINE.
    with pytest.raises(ConfigurationError, match="the Hugging Face hub gave none") as e:
        open_hub("owner/name")
    assert "hf download owner/name --repo-type dataset --local-dir name" in str(e.value)
    assert str(e.value).endswith("then set data.dataset_name to that folder.")


def test_splits_of_a_dictionary():
    splits = {"train": [1], "test": [2]}
    assert pick_split(splits, None, "x") == [1]
    assert pick_split(splits, "test", "x") == [2]
    assert pick_split([3], "test", "x") == [3]
    with pytest.raises(DataError, match="x has no split 'tets'.*Did you mean test"):
        pick_split(splits, "tets", "x")
