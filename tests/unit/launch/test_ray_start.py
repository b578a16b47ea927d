"""Tests of nemo_rl.launch.ray_start."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.ray_start import (
    BLOCK,
    NAMED_PORTS,
    PORT_BAND,
    PortPlan,
    hold_ports,
    plan_ports,
    ray_arguments,
    ray_environment,
    write_token,
)
from nemo_rl.utils.exceptions import LaunchError

JOB = Allocation(
    job_id=17,
    node_index=0,
    num_nodes=2,
    node_names=("a", "b"),
    num_cpus=6,
    num_gpus=4,
    memory_mb=4096,
)


def test_ports_follow_from_the_job_id_and_stay_in_the_band():
    firsts = {plan_ports(job_id).first for job_id in range(20)}
    assert len(firsts) > 10
    assert all(PORT_BAND[0] <= f <= PORT_BAND[1] - BLOCK for f in firsts)


def test_a_block_with_a_taken_port_is_left_out():
    first = plan_ports(5).first
    with socket.socket() as taken:
        taken.bind(("", first + 2))
        taken.listen()
        assert plan_ports(5).first != first


def test_a_block_that_is_held_is_left_to_its_job():
    """Before Ray listens on any of its ports."""
    plan, held = hold_ports(5)
    with held:
        other, also = hold_ports(25)  # The first choice of both is the same block.
        also.close()
        assert other.first != plan.first and plan.is_free
    again, held = hold_ports(25)
    held.close()
    assert again == plan


def test_no_free_block_is_an_error(monkeypatch):
    monkeypatch.setattr("nemo_rl.launch.ray_start.is_free", lambda port: False)
    with pytest.raises(LaunchError, match="no free block of 500 ports"):
        plan_ports(1)


def test_every_port_is_pinned_and_none_twice():
    flags = PortPlan(10500).flags(head=True)
    ports = [int(flag.partition("=")[2]) for flag in flags]
    assert len(set(ports)) == len(NAMED_PORTS) + 2
    assert max(ports) < 11000
    worker = PortPlan(10500).flags(head=False)
    assert not any(flag.startswith("--port=") for flag in worker)


def test_command_takes_sizes_from_slurm_alone():
    ports, temp = PortPlan(10500), Path("/tmp/x")
    head = ray_arguments(JOB, ip="1.2.3.4", ports=ports, temp_dir=temp)
    assert head[0] == "start"
    assert {"--head", "--block", "--num-cpus=6", "--num-gpus=4"} <= set(head)
    assert "--port=10500" in head
    assert "--labels=nemo_rl/place=0" in head
    worker = ray_arguments(
        JOB, ip="i", ports=ports, temp_dir=temp, head_address="1.2.3.4:1"
    )
    assert "--address=1.2.3.4:1" in worker
    assert "--head" not in worker


def test_token_is_private_and_in_no_variable(tmp_path):
    path = write_token(tmp_path / "token")
    token = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == 64
    environ = {"SLURM_JOB_ID": "1", "PMI_RANK": "0", "HOME": "/h", "RAY_ADDRESS": "x"}
    env = ray_environment(environ, token_file=path, temp_dir=tmp_path)
    assert token not in "".join(env.values())
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_AUTH_TOKEN_PATH"] == str(path)
    assert not {"SLURM_JOB_ID", "PMI_RANK", "RAY_ADDRESS"} & set(env)
    assert env["HOME"] == "/h"
    with pytest.raises(FileExistsError):
        write_token(path)
