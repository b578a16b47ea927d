"""Splits of a stream."""

from __future__ import annotations

import itertools

import pytest

from nemo_rl.data.datasets.distinct import check_split, distinct, part_of
from nemo_rl.utils.exceptions import DataError


def test_distinct_items_until_there_are_enough_or_no_more():
    assert distinct(iter("abacad"), 3, key=str) == ["a", "b", "c"]
    assert distinct(itertools.cycle("ab"), 5, key=str) == ["a", "b"]


def test_splits_share_nothing_and_validation_stands_still():
    items = list(range(10))
    assert part_of(items, "validation", num_validation=3, what="x") == [0, 1, 2]
    assert part_of(items, "train", num_validation=3, what="x") == items[3:]
    assert check_split("train", size=5, num_validation=3) == 8
    assert check_split("validation", size=5, num_validation=3) == 3


@pytest.mark.parametrize(
    ("split", "size", "held_out", "message"),
    [
        ("vaildation", 5, 3, "Did you mean validation"),
        ("train", 0, 3, "size=0, num_validation=3: a split needs"),
        ("validation", 5, 0, "a split needs at least 1 row"),
    ],
)
def test_splits_that_cannot_be(split, size, held_out, message):
    with pytest.raises(DataError, match=message):
        check_split(split, size=size, num_validation=held_out)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_too_few_different_problems(split):
    count = 3 if split == "train" else 2
    with pytest.raises(DataError, match=f"x has only {count} different problems"):
        part_of(list(range(count)), split, num_validation=3, what="x")
