"""Collectives: no-ops alone, correct between two real gloo processes."""

import torch

from nemo_rl.distributed import collectives
from nemo_rl.utils.exceptions import WorkerError
from tests.functional.ranks import run_ranks


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


def _every_collective(info):
    import torch.distributed as dist

    rank = info.rank
    dist.init_process_group(
        "gloo", init_method=info.init_method, rank=rank, world_size=info.world_size
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
    return results


def test_two_processes_agree():
    first, second = run_ranks(_every_collective, 2)
    for results, rank in ((first, 0), (second, 1)):
        assert results["object"] == {"from": 1}
        assert results["gathered"] == [0, 10]
        assert results["float"] == 2.0**53 / 2 + 1
        assert results["tensor"] == [3.0, 3.0, 3.0]
        assert results["given"] == [rank + 1.0] * 3
        assert results["sent"] == [1.0, 1.0]
    assert "barrier 'the late one' within 1 s" in first["late"]
