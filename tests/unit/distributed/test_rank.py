"""RankInfo and the table of launcher variables."""

import os
import socket

import pytest

from nemo_rl.distributed import rank
from nemo_rl.utils.exceptions import ConfigurationError, ResourceError


def test_a_lone_process_is_rank_0_of_1():
    info = rank.RankInfo.from_environment({})
    assert (info.rank, info.world_size, info.use_gpu) == (0, 1, False)


def test_slurm_and_torchrun_are_read_and_torchrun_wins():
    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "MASTER_ADDR": "node0",
        "MASTER_PORT": "20001",
    }
    info = rank.RankInfo.from_environment(slurm)
    assert (info.rank, info.local_rank, info.node_rank) == (5, 1, 1)
    assert info.init_method == "tcp://node0:20001"
    both = {**slurm, "RANK": "2", "WORLD_SIZE": "4"}
    assert rank.RankInfo.from_environment(both).rank == 2


def test_torch_env_round_trips():
    info = rank.RankInfo(rank=3, world_size=4, local_rank=1, node_rank=1)
    assert rank.RankInfo.from_environment(info.torch_env()) == info


def test_ipv6_masters_are_bracketed():
    info = rank.RankInfo(rank=0, world_size=1, master_addr="fe80::1", master_port=1)
    assert info.init_method == "tcp://[fe80::1]:1"


def test_broken_variables_are_named():
    with pytest.raises(ConfigurationError, match="RANK='x' is not a whole number"):
        rank.RankInfo.from_environment({"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(ConfigurationError, match="RANK=2 is not below WORLD_SIZE=2"):
        rank.RankInfo.from_environment({"RANK": "2", "WORLD_SIZE": "2"})


def test_scheduler_variables_are_stripped(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PMIX_RANK", "0")
    monkeypatch.setenv("NEMO_RL_CACHE", "kept")
    assert {"SLURM_JOB_ID", "PMIX_RANK"} <= set(rank.strip_scheduler_variables())
    assert "SLURM_JOB_ID" not in os.environ and os.environ["NEMO_RL_CACHE"] == "kept"


def test_environment_is_restored(monkeypatch):
    monkeypatch.setenv("A_VARIABLE", "before")
    with rank.environment({"A_VARIABLE": "inside", "B_VARIABLE": "new"}):
        assert os.environ["A_VARIABLE"] == "inside"
    assert os.environ["A_VARIABLE"] == "before" and "B_VARIABLE" not in os.environ


def test_free_ports_skip_taken_ones():
    port = rank.find_free_port()
    assert rank.PORT_RANGE[0] <= port < rank.PORT_RANGE[1]
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        assert rank.find_free_port(port, port + 20) != port
        with pytest.raises(ResourceError, match=f"No free TCP port in {port}-{port}"):
            rank.find_free_port(port, port + 1)
