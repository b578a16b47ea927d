"""split_numbers on spaces small and large, hold_out on rows."""

import pytest

from nemo_rl.data.datasets.split import hold_out, split_numbers
from nemo_rl.utils.exceptions import DataError


@pytest.mark.parametrize("total", [50, 10**9])
def test_splits_are_disjoint_and_leave_out_the_excluded(total):
    common = {"num_validation": 20, "seed": 1, "excluded": frozenset({7})}
    held_out = split_numbers(total, "validation", **common)
    train = split_numbers(total, "train", size=25, **common)
    assert (len(set(held_out)), len(set(train))) == (20, 25)
    assert not set(held_out) & set(train) and 7 not in {*held_out, *train}


def test_a_small_space_is_used_whole():
    train = split_numbers(50, "train", num_validation=0, seed=1)
    assert sorted(train) == list(range(50)) and train != list(range(50))


@pytest.mark.parametrize(("size", "count"), [(0.1, 10), (1, 1), (99, 99), (0.5, 50)])
def test_held_out_rows_are_in_neither_order_nor_both_halves(size, count):
    rows = [f"q{i}" for i in range(100)]
    train, held_out = hold_out(rows, size)
    assert len(held_out) == count and sorted([*train, *held_out]) == sorted(rows)
    assert [row for row in rows if row in set(held_out)] == list(held_out)
    again = hold_out(rows, size)[1]
    other = hold_out(rows, size, seed=1)[1]
    assert list(again) == list(held_out) and list(other) != list(held_out)
    assert held_out.describe_row(0) == f"row {rows.index(held_out[0])}"


@pytest.mark.parametrize(("size", "message"), [(10, "0 to train"), (0.01, "0 to val")])
def test_a_half_without_rows(size, message):
    with pytest.raises(DataError, match=f"split_validation_size=.* of 10 .*{message}"):
        hold_out(range(10), size)
