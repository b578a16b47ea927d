"""BatchedDataDict: rows stay together through every operation."""

import pickle

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import DataError


def make(rows=4):
    return BatchedDataDict(
        {
            "x": torch.arange(rows),
            "ids": torch.arange(rows * 3).reshape(rows, 3),
            "name": [f"r{i}" for i in range(rows)],
        }
    )


def test_size_and_slice_keep_rows_together():
    batch = make()
    part = batch.slice(1, 3)
    assert (batch.size, part.size) == (4, 2)
    assert part["x"].tolist() == [1, 2] and part["name"] == ["r1", "r2"]
    assert BatchedDataDict().size == 0
    with pytest.raises(DataError, match="Rows 2:9 do not lie in a batch of 4 rows"):
        batch.slice(2, 9)


def test_lengths_must_agree():
    with pytest.raises(DataError, match="x: 2, y: 3"):
        BatchedDataDict({"x": torch.zeros(2), "y": [1, 2, 3]})
    batch = make()
    with pytest.raises(DataError, match="new: 5"):
        batch |= {"new": [0] * 5}
    assert "new" not in batch
    with pytest.raises(DataError, match="'loss' is a 0-dim tensor"):
        batch["loss"] = torch.tensor(1.0)
    with pytest.raises(DataError, match="'n' is int"):
        batch["n"] = 3


def test_in_place_or_adds_columns():
    batch = make()
    same = batch
    batch |= {"y": torch.ones(4)}
    assert same is batch and batch["y"].sum() == 4
    assert (batch | {"z": [1, 2, 3, 4]})["z"] == [1, 2, 3, 4]


def test_shards_are_contiguous_and_complete():
    shards = make(6).shard_by_batch_size(3)
    assert [s["x"].tolist() for s in shards] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(DataError, match="nearest sizes: 4 or 6"):
        make(5).shard_by_batch_size(2)
    uneven = make(5).shard_by_batch_size(3, allow_uneven_shards=True)
    assert [s.size for s in uneven] == [2, 2, 1]
    few = make(1).shard_by_batch_size(2, allow_uneven_shards=True)
    assert [s.size for s in few] == [1, 0]
    with pytest.raises(DataError, match="0 shards"):
        make().shard_by_batch_size(0)


def test_repeat_interleave_repeats_each_row():
    repeated = make(2).repeat_interleave(3)
    assert repeated["x"].tolist() == [0, 0, 0, 1, 1, 1]
    assert repeated["name"] == ["r0"] * 3 + ["r1"] * 3
    repeated["x"][0] = 9
    assert repeated["x"][1] == 0
    with pytest.raises(DataError, match="0 times"):
        make().repeat_interleave(0)


def test_select_takes_rows_and_masks():
    batch = make()
    assert batch.select([3, 0, 3])["name"] == ["r3", "r0", "r3"]
    assert batch.select(torch.tensor([True, False, False, True]))["x"].tolist() == [
        0,
        3,
    ]
    assert batch.select([]).size == 0
    with pytest.raises(DataError, match="Row 7 does not lie"):
        batch.select([7])
    with pytest.raises(DataError, match=r"mask of shape \(2,\)"):
        batch.select(torch.tensor([True, False]))


def test_reorder_is_a_permutation_and_undoes():
    order = [2, 0, 3, 1]
    shuffled = make().reorder(order)
    assert shuffled["x"].tolist() == order
    inverse = torch.tensor(order).argsort()
    assert shuffled.reorder(inverse)["x"].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="each of the 4 rows once"):
        make().reorder([0, 0, 1, 2])


def test_from_batches_pads_dim_1_on_the_right():
    short = BatchedDataDict({"ids": torch.ones(1, 2, dtype=torch.long), "t": ["a"]})
    long = BatchedDataDict({"ids": torch.ones(2, 4, dtype=torch.long), "t": ["b", "c"]})
    joined = BatchedDataDict.from_batches([short, long], pad_values={"ids": 7})
    assert joined["ids"].tolist() == [[1, 1, 7, 7], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert joined["t"] == ["a", "b", "c"]
    assert BatchedDataDict.from_batches([short, long])["ids"][0].tolist() == [
        1,
        1,
        0,
        0,
    ]


def test_from_batches_refuses_what_does_not_join():
    with pytest.raises(DataError, match="no batches"):
        BatchedDataDict.from_batches([])
    with pytest.raises(DataError, match=r"Batch 1 and batch 0 differ.*\['y'\]"):
        BatchedDataDict.from_batches([{"x": [1]}, {"x": [1], "y": [2]}])
    with pytest.raises(DataError, match="tensor in one batch, a list in another"):
        BatchedDataDict.from_batches([{"x": [1]}, {"x": torch.ones(1)}])
    with pytest.raises(DataError, match="shapes that do not join"):
        BatchedDataDict.from_batches(
            [{"x": torch.ones(1, 2, 3)}, {"x": torch.ones(1, 2, 4)}]
        )


def test_to_and_pickle_keep_everything():
    batch = pickle.loads(pickle.dumps(make().to("cpu")))
    assert type(batch) is BatchedDataDict and batch["name"] == make()["name"]
    assert torch.equal(batch["ids"], make()["ids"])
