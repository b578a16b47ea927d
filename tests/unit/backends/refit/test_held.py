"""What ranks hold, put together: slices add up, copies must agree, gaps are told."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.backends.refit.digest import tensor_digest
from nemo_rl.backends.refit.held import RankWeights, merge_ranks

TENSOR = torch.arange(24.0).view(4, 6)


def part(rows: slice, tensor: torch.Tensor = TENSOR):
    begin = (rows.start or 0, 0)
    own = tensor[rows]
    value = tensor_digest(own, offset=begin, full_shape=tensor.shape)
    return begin, tuple(own.shape), value


def merged(*ranks):
    own = [RankWeights(parts={"w": list(parts)}) for parts in ranks]
    return merge_ranks(own, {"w": (4, 6)})


@pytest.mark.parametrize(
    "ranks",
    [
        [[part(slice(0, 4))]],
        [[part(slice(0, 2))], [part(slice(2, 4))]],
        [[part(slice(0, 4))], [part(slice(0, 4))]],
        [[part(slice(0, 2))], [part(slice(0, 2))], [part(slice(2, 4))]],
        [[part(slice(0, 1)), part(slice(3, 4))], [part(slice(1, 3))], []],
    ],
    ids=["one", "two slices", "two copies", "a copied slice", "a rank with nothing"],
)
def test_slices_add_up_and_copies_count_once(ranks):
    engine = merged(*ranks)
    assert engine.digests == {"w": tensor_digest(TENSOR)}
    assert not engine.torn and not engine.uncovered


def test_copies_that_differ_are_told():
    other = TENSOR.clone()
    other[0, 0] = 1
    engine = merged([part(slice(0, 4))], [part(slice(0, 4), other)])
    assert engine.torn["w"].startswith("rank 1 holds other bits than an earlier rank")


def test_gaps_are_told():
    engine = merged([part(slice(0, 2))], [part(slice(0, 2))])
    assert engine.torn == {"w": "the ranks hold 12 of its 24 elements"}


def test_reasons_and_finds_of_all_ranks_are_kept():
    ranks = [
        RankWeights(
            parts={"w": [part(slice(0, 4))]},
            uncovered={"x": "fp8"},
            stale=["lm_head"],
            non_finite={"w": 1},
            rounded={"n": "bfloat16"},
        ),
        RankWeights(
            parts={"w": [part(slice(0, 4))]},
            stale=["lm_head", "a"],
            non_finite={"w": 3},
            unsent=["b"],
        ),
    ]
    engine = merge_ranks(ranks, {"w": (4, 6), "x": (2,)})
    assert engine.uncovered == {"x": "fp8"} and list(engine.digests) == ["w"]
    assert engine.stale == ["lm_head", "a"] and engine.unsent == ["b"]
    assert engine.non_finite == {"w": 3} and engine.rounded == {"n": "bfloat16"}
