"""Collectives: no-ops alone, correct between two real gloo processes."""

import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from nemo_rl.distributed import collectives
from nemo_rl.distributed.rank import RankInfo, find_free_port
from nemo_rl.utils.exceptions import WorkerError


def test_alone_each_is_a_no_op():
    tensor = torch.ones(2)
    assert not collectives.is_distributed()
    assert collectives.broadcast_object("x") == "x"
    assert collectives.gather_objects(3) == [3]
    assert collectives.all_reduce_sum(2.5) == 2.5
    total = collectives.all_reduce_sum(tensor)
    assert torch.equal(total, tensor) and total is not tensor
    collectives.broadcast_tensors([tensor])
    collectives.barrier("nothing")


def two_ranks(rank, port, folder):
    import torch.distributed as dist

    info = RankInfo(rank=rank, world_size=2, master_port=port)
    dist.init_process_group(
        "gloo", init_method=info.init_method, rank=rank, world_size=2
    )
    results = {
        "object": collectives.broadcast_object({"from": rank}, src=1),
        "gathered": collectives.gather_objects(rank * 10),
        "float": collectives.all_reduce_sum(2.0**53 / 4 + rank),
    }
    given = torch.full((3,), float(rank + 1))
    results["tensor"] = collectives.all_reduce_sum(given).tolist()
    results["given"] = given.tolist()
    sent = torch.full((2,), float(rank))
    collectives.broadcast_tensors([sent], src=1)
    results["sent"] = sent.tolist()
    collectives.barrier("everybody is here")
    try:
        if rank == 0:
            collectives.barrier("the late one", timeout_s=1.0)
    except WorkerError as error:
        results["late"] = str(error)
    torch.save(results, Path(folder) / f"{rank}.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over fork/spawn on Linux")
def test_two_processes_agree(tmp_path):
    mp.spawn(two_ranks, args=(find_free_port(), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for results, rank in ((first, 0), (second, 1)):
        assert results["object"] == {"from": 1}
        assert results["gathered"] == [0, 10]
        assert results["float"] == 2.0**53 / 2 + 1
        assert results["tensor"] == [3.0, 3.0, 3.0]
        assert results["given"] == [rank + 1.0] * 3
        assert results["sent"] == [1.0, 1.0]
    assert "barrier 'the late one' within 1 s" in first["late"]
