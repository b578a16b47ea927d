"""Tests of nemo_rl.launch.allocation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_rl.launch.allocation import (
    MEBIBYTE,
    OBJECT_STORE_LIMITS,
    Allocation,
    address_of,
    host_memory_mb,
)
from nemo_rl.utils.exceptions import LaunchError

ENVIRON = {
    "SLURM_JOB_ID": "17",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_JOB_NODELIST": "gpu[1-3]",
    "SLURMD_NODENAME": "gpu2",
    "SLURM_CPUS_ON_NODE": "64",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_MEM_PER_NODE": "1000000",
}


def test_reads_this_nodes_share():
    job = Allocation.from_environment(ENVIRON)
    assert (job.job_id, job.node_name, job.is_head) == (17, "gpu2", False)
    assert (job.num_nodes, job.num_cpus, job.num_gpus) == (3, 64, 8)
    assert (job.memory_mb, job.switch) == (1_000_000, "")
    below = ENVIRON | {"SLURM_TOPOLOGY_ADDR": "core.leaf3.gpu2"}
    assert Allocation.from_environment(below).switch == "core.leaf3"
    alone = ENVIRON | {"SLURM_TOPOLOGY_ADDR": "gpu2", "SLURM_HET_SIZE": "1"}
    assert Allocation.from_environment(alone).switch == ""


def test_gpus_default_to_none_and_memory_to_cpus_or_host():
    environ = dict(ENVIRON)
    del environ["SLURM_GPUS_ON_NODE"]
    environ["SLURM_MEM_PER_NODE"] = "0"
    assert Allocation.from_environment(environ).num_gpus == 0
    assert Allocation.from_environment(environ).memory_mb == host_memory_mb()
    environ["SLURM_MEM_PER_CPU"] = "500"
    assert Allocation.from_environment(environ).memory_mb == 64 * 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID is not set"),
        ({"SLURM_HET_SIZE": "2"}, "SLURM_HET_SIZE=2: this is a heterogeneous job"),
        ({"SLURM_CPUS_ON_NODE": None}, "SLURM_CPUS_ON_NODE='' is not a number"),
        ({"SLURM_GPUS_ON_NODE": "gpu:8"}, "SLURM_GPUS_ON_NODE='gpu:8'"),
        ({"SLURM_JOB_NODELIST": "gpu[1-2]"}, "names 2 nodes, but .* is 3"),
        ({"SLURMD_NODENAME": "gpu3"}, "task 1 runs on gpu3, but node 1 .* gpu2"),
    ],
)
def test_incomplete_variables_are_named(change, message):
    environ = {k: v for k, v in (ENVIRON | change).items() if v is not None}
    with pytest.raises(LaunchError, match=message):
        Allocation.from_environment(environ)


def test_object_store_is_a_share_of_the_memory_within_shared_memory():
    job = Allocation.from_environment(ENVIRON)
    low, high = OBJECT_STORE_LIMITS
    assert job.object_store_bytes(10**15) == high
    assert job.object_store_bytes(10**9) == 800_000_000
    assert job.object_store_bytes(0) == low
    small = Allocation.from_environment(ENVIRON | {"SLURM_MEM_PER_NODE": "4096"})
    assert small.object_store_bytes(10**15) == int(0.3 * 4096 * MEBIBYTE)


def test_address_of_an_unknown_name_is_refused():
    with pytest.raises(LaunchError, match="nowhere.invalid has no address"):
        address_of("nowhere.invalid")
    assert address_of("localhost", alone=True).startswith("127.")


def test_a_node_of_a_job_that_has_ended_is_neither_head_nor_at_work():
    """Nobody trains: whoever took itself for the head would say how the job ended."""
    nobody = replace(Allocation.from_environment(ENVIRON), num_nodes=0, node_index=0)
    assert nobody.is_spare and not nobody.is_head
