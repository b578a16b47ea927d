"""HFDataModule: the splits of a folder laid out as on the hub."""

import json

import pytest

from nemo_rl.data.module import DataModule
from nemo_rl.data.module_hf import HFDataModule
from nemo_rl.utils.exceptions import DataError
from tests.fakes.tokenizers import character_tokenizer

PLAIN = character_tokenizer()


@pytest.fixture
def folder(tmp_path, datasets):
    for split, count in (("train", 8), ("test", 3)):
        rows = [
            {"question": f"{split}{i}", "answer": f"#### {i}"} for i in range(count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines)
    return tmp_path


def test_its_splits(folder):
    data = HFDataModule(
        folder,
        PLAIN,
        val_split="test",
        config={"prompt_key": "question", "shuffle": False},
    )
    assert len(data) == 8 and data.has_validation
    assert next(data.batches(2))["prompt"] == ["train0", "train1"]
    assert next(data.validation_batches(None, 9))["prompt"] == [
        "test0",
        "test1",
        "test2",
    ]
    # A trainer takes it as it is.
    assert DataModule.create(data, PLAIN, {}) is data
    with pytest.raises(DataError, match="no split 'dev'; it has train, test"):
        HFDataModule(folder, PLAIN, split="dev")


def test_a_published_dataset_and_a_part_held_out(folder):
    data = HFDataModule(
        "gsm8k",
        PLAIN,
        split="train",
        dataset_kwargs={"path": str(folder)},
        config={"split_validation_size": 2, "shuffle": False},
    )
    assert len(data) == 6
    held_out = next(data.validation_batches(None, 9))["prompt"]
    trained = next(data.batches(6))["prompt"]
    assert len(held_out) == 2 and not set(held_out) & set(trained)
