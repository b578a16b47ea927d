"""Names to rows; the hub is not asked."""

import pytest

from nemo_rl.data.datasets import load_dataset, register_dataset
from nemo_rl.data.datasets.registry import dataset_names, pick_split
from nemo_rl.utils.exceptions import ConfigurationError, DataError


def test_built_in_and_registered_names():
    assert len(load_dataset("arithmetic", split="validation", num_validation=7)) == 7

    @register_dataset("test_squares")
    def squares(split="train"):
        return [{"prompt": split}]

    assert load_dataset("test_squares", split="x") == [{"prompt": "x"}]
    assert {"arithmetic", "reverse_digits", "test_squares"} <= set(dataset_names())
    with pytest.raises(ConfigurationError, match="'splitt'.* It takes split"):
        load_dataset("test_squares", splitt="x")


def test_code_and_files_beside_the_recipe(tmp_path):
    (tmp_path / "my_rows.py").write_text(
        "def make(n=1):\n    return ['q'] * n\nROWS = ['r']\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')
    assert load_dataset("my_rows:make", search_dir=tmp_path, n=3) == ["q"] * 3
    assert load_dataset("my_rows:ROWS", search_dir=tmp_path) == ["r"]
    assert load_dataset("rows.jsonl", search_dir=tmp_path)[0] == {"prompt": "x"}


def test_missing_files_and_folders_without_data(tmp_path):
    with pytest.raises(DataError, match="'./absent' does not exist"):
        load_dataset("./absent")
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match="not a folder written by"):
        load_dataset(str(tmp_path))


def test_splits_of_a_dictionary():
    splits = {"train": [1], "test": [2]}
    assert pick_split(splits, None, "x") == [1] and pick_split(splits, "test", "x") == [
        2
    ]
    assert pick_split([3], "test", "x") == [3]
    with pytest.raises(DataError, match="x has no split 'tets'.*Did you mean test"):
        pick_split(splits, "tets", "x")


def test_an_unknown_name_lists_the_known_ones(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name, split=None):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConfigurationError, match="'a/b'.*no network"):
        load_dataset("a/b")
    with pytest.raises(ConfigurationError, match="'squad'.*arithmetic.*no network"):
        load_dataset("squad")
    # A slip of the pen is not looked for on the hub, which may take half a minute.
    with pytest.raises(ConfigurationError, match="aritmetic.*mean arithmetic?") as slip:
        load_dataset("aritmetic")
    assert "no network" not in str(slip.value)
