"""ParallelDims against Megatron's own order of ranks, by exhaustion."""

import itertools

import pytest

from nemo_rl.config.parallel import Coordinates, ParallelDims, divisors, nearest
from nemo_rl.utils.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("tp", "cp", "dp", "pp"), list(itertools.product((1, 2, 3), (1, 2), (1, 2), (1, 4)))
)
def test_order_is_tp_cp_dp_pp(tp: int, cp: int, dp: int, pp: int) -> None:
    dims = ParallelDims(world_size=tp * cp * dp * pp, tp=tp, cp=cp, pp=pp)
    assert dims.dp == dp
    order = itertools.product(range(pp), range(dp), range(cp), range(tp))
    for rank, (p, d, c, t) in enumerate(order):
        assert dims.coordinates(rank) == Coordinates(tp=t, cp=c, dp=d, pp=p)
        assert dims.rank_of(tp=t, cp=c, dp=d, pp=p) == rank


def test_same_as_megatron() -> None:
    state = pytest.importorskip("megatron.core.parallel_state")
    generator = state.RankGenerator(
        tp=2, ep=1, dp=3, pp=2, cp=2, order="tp-cp-ep-dp-pp"
    )
    dims = ParallelDims(world_size=24, tp=2, pp=2, cp=2)
    for axis in ("tp", "cp", "dp", "pp"):
        ours: dict[tuple, list[int]] = {}
        for rank in range(24):
            at = dims.coordinates(rank)._asdict()
            at.pop(axis)
            ours.setdefault(tuple(at.values()), []).append(rank)
        theirs = generator.get_ranks(axis)
        assert sorted(ours.values()) == sorted(list(group) for group in theirs)


def test_leaders_have_the_logits() -> None:
    dims = ParallelDims(world_size=16, tp=2, pp=2, cp=2)
    leaders = [dims.coordinates(rank) for rank in dims.dp_leaders()]
    assert leaders == [Coordinates(tp=0, cp=0, dp=d, pp=1) for d in range(2)]


@pytest.mark.parametrize("rank", [-1, 4])
def test_no_such_rank(rank: int) -> None:
    with pytest.raises(IndexError, match=f"rank {rank} of a world of 4"):
        ParallelDims(world_size=4).coordinates(rank)


def test_no_such_index() -> None:
    with pytest.raises(IndexError, match="tp 2 of 2"):
        ParallelDims(world_size=4, tp=2).rank_of(tp=2)


def test_world_size_must_be_divided() -> None:
    with pytest.raises(
        ConfigurationError,
        match="tensor 4 x pipeline 2 x context 1 parallel = 8 .* does not divide the "
        "world size 12. Nearest valid world size: 8 or 16.",
    ):
        ParallelDims(world_size=12, tp=4, pp=2)


def test_expert_size_must_divide_a_stage() -> None:
    with pytest.raises(
        ConfigurationError, match="expert .* 3 .* Nearest valid: 2 or 4"
    ):
        ParallelDims(world_size=8, pp=2, ep=3)


def test_sizes_are_positive() -> None:
    with pytest.raises(ConfigurationError, match="tp=0 must be >= 1"):
        ParallelDims(world_size=8, tp=0)


def test_nearest() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert nearest(5, divisors(12)) == "4 or 6"
    assert nearest(4, divisors(12)) == "4"
    assert nearest(20, divisors(12)) == "12"
