"""Datum types agree with each other; DatasetInterface says what is missing."""

import pytest

from nemo_rl.data.interfaces import (
    DatasetInterface,
    PromptBatch,
    RolloutBatch,
    TrainBatch,
    TrainingDatumSpec,
)


def test_each_stage_keeps_the_columns_of_the_one_before():
    prompt, rollout, train = (
        set(t.__annotations__) for t in (PromptBatch, RolloutBatch, TrainBatch)
    )
    assert prompt < rollout < train
    assert set(TrainingDatumSpec.__annotations__) - {"__extra__"} < train


def test_a_dataset_needs_rows_and_a_length():
    with pytest.raises(TypeError, match="abstract"):
        DatasetInterface()

    class Rows(DatasetInterface):
        def __getitem__(self, idx):
            return {"prompt": self.config["text"]}

    assert Rows({"text": "x"})[0] == {"prompt": "x"}
    with pytest.raises(TypeError, match="Rows has no __len__"):
        len(Rows())
