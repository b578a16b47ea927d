"""Platform set-up of a rank, on real gloo ranks."""

from __future__ import annotations

import random

import pytest
import torch

from nemo_rl.backends.platform import Platform, setup
from nemo_rl.distributed.rank import RankInfo
from nemo_rl.utils.exceptions import ResourceError
from tests.functional.ranks import run_ranks


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to give")
def test_promised_gpu_that_is_not_there_is_named():
    with pytest.raises(ResourceError, match="rank 3 was given a GPU, but torch"):
        setup(RankInfo(rank=3, world_size=4, use_gpu=True))
    assert not torch.distributed.is_initialized()


def _joined(rank):
    import torch.distributed as dist
    from megatron.core import parallel_state

    platform = setup(rank, threads=1)
    assert setup(rank) == platform  # joining twice is harmless
    total = torch.tensor([float(rank.rank + 1)])
    dist.all_reduce(total)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)

    def draws():
        from megatron.core.tensor_parallel import get_cuda_rng_tracker

        with get_cuda_rng_tracker().fork():
            tracked = torch.rand(2).tolist()
        return [random.random(), torch.rand(2).tolist(), tracked]

    platform.seed(3)
    first = draws()
    platform.seed(3)
    again = draws()
    platform.seed(4)
    other = draws()
    return {
        "backend": dist.get_backend(),
        "sum": total.item(),
        "threads": torch.get_num_threads(),
        "platform": platform,
        "memory": platform.peak_memory_bytes(),
        "draws": (first, again, other),
    }


@pytest.fixture(scope="module")
def joined():
    return run_ranks(_joined, 2)


def test_ranks_join_one_gloo_group(joined):
    assert [r["backend"] for r in joined] == ["gloo", "gloo"]
    assert [r["sum"] for r in joined] == [3.0, 3.0]
    assert [r["threads"] for r in joined] == [1, 1]


def test_cpu_platform_switches_fused_kernels_off(joined):
    platform = joined[0]["platform"]
    assert isinstance(platform, Platform)
    assert platform.device == torch.device("cpu")
    assert platform.layer_spec == "torch"
    assert platform.transformer_overrides["gradient_accumulation_fusion"] is False
    assert platform.transformer_overrides["use_cpu_initialization"] is True


def test_peak_memory_is_that_of_this_process(joined):
    assert 50e6 < joined[0]["memory"] < 50e9


def test_seed_repeats_every_generator(joined):
    for result in joined:
        first, again, other = result["draws"]
        assert first == again
        assert all(a != b for a, b in zip(first, other, strict=True))


def test_seed_gives_tensor_parallel_ranks_streams_of_their_own(joined):
    """Inside the tracker ranks differ (dropout of split tensors), outside not."""
    one, two = (r["draws"][0] for r in joined)
    assert one[:2] == two[:2]
    assert one[2] != two[2]
