"""Names to rows; the hub is not asked."""

from pathlib import Path

import pytest

from nemo_rl.data.datasets import load_dataset, register_dataset
from nemo_rl.data.datasets.catalogue import PUBLISHED
from nemo_rl.data.datasets.mixture import MixtureDataset, Source
from nemo_rl.data.datasets.registry import _BUILT_IN, dataset_names, takes_split
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


def test_missing_files():
    with pytest.raises(DataError, match="'./absent' does not exist"):
        load_dataset("./absent")
    with pytest.raises(DataError, match="'absent.parquet' does not exist"):
        load_dataset("absent.parquet")


def test_published_names_in_any_spelling(tmp_path):
    pytest.importorskip("datasets")
    file = tmp_path / "copy.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "Two.\\n#### 2"}\n')
    expected = {"prompt": "1 + 1?", "answer": "2", "task_name": "math"}
    for name in ("gsm8k", "GSM8K", "openai/gsm8k"):
        rows = load_dataset(name, path="copy.jsonl", search_dir=tmp_path)
        assert rows[0] == expected
        assert takes_split(name)
    assert not takes_split("./folder")


def test_an_unknown_name_lists_the_known_ones():
    # The tests run with HF_HUB_OFFLINE: the hub is asked, and says so.
    pytest.importorskip("datasets")
    with pytest.raises(ConfigurationError, match="'squad'.*arithmetic.*gsm8k.*hub"):
        load_dataset("squad")
    # A slip of the pen is not looked for on the hub, which may take half a minute.
    with pytest.raises(ConfigurationError, match="aritmetic.*mean arithmetic?") as slip:
        load_dataset("aritmetic")
    assert "hub" not in str(slip.value)


def test_the_page_lists_every_dataset():
    page = (Path(__file__).parents[4] / "docs/data.md").read_text()
    table = page.partition("## Datasets by name")[2].partition("\n\nLicences")[0]
    cells = [
        tuple(cell.strip(" `") for cell in line.strip("|").split("|"))
        for line in table.splitlines()
        if line.startswith("| `")
    ]
    listed = {name: (shapes, hub, licence) for name, shapes, hub, licence in cells}
    assert sorted(listed) == sorted({*PUBLISHED, *_BUILT_IN}), "docs/data.md"
    for name, entry in PUBLISHED.items():
        assert listed[name] == (", ".join(entry.shapes), entry.hub, entry.licence)
    assert "7473 and 2491 samples" in page
    sources = [Source("a", range(7473), 3), Source("b", range(1000), 1)]
    assert MixtureDataset(sources).counts == [7473, 2491]
