"""split_numbers on spaces small and large."""

import pytest

from nemo_rl.data.datasets.split import split_numbers


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
