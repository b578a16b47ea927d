"""Digits backwards, and no string in both splits."""

import pytest

from nemo_rl.data.datasets.reverse import ReverseDigitsDataset
from nemo_rl.utils.exceptions import DataError


def test_rows_and_splits():
    train = ReverseDigitsDataset(num_digits=3)
    held_out = ReverseDigitsDataset("validation", 3)
    rows = [d[i] for d in (train, held_out) for i in range(len(d))]
    assert (len(train), len(held_out)) == (744, 256)
    assert len({row["prompt"] for row in rows}) == 1000
    assert all(row["prompt"] == row["answer"][::-1] + ">" for row in rows)
    assert any(row["prompt"].startswith("0") for row in rows)
    with pytest.raises(DataError, match="num_digits=0"):
        ReverseDigitsDataset(num_digits=0)
