"""Tests of nemo_rl.launch.evidence: a kernel's log, control groups, kept logs."""

from __future__ import annotations

import os
import time

import pytest

from nemo_rl.launch.evidence import (
    FILE_BYTES,
    NODE_BYTES,
    Witness,
    hidden,
    keep_logs,
    node_share,
    secret_values,
    worker_log,
)


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return tmp_path / "proc"


def test_kernel_lines_since_the_start(tmp_path, proc):
    # A named pipe is read as the device is, record by record.
    device = tmp_path / "kmsg"
    os.mkfifo(device)
    witness = Witness(proc=proc, kernel=device)
    now = time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
    reader = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    with device.open("w") as file:
        file.write("6,1,5,-;Out of memory: Killed process 1 (old)\n")
        file.write(f"6,2,{now + 1:.0f},-;eth0: link up\n")
        file.write(f"3,3,{now + 2:.0f},-,caller=T1;Out of memory: Killed process 2\n")
        file.flush()
        assert witness.lines() == ["kernel: Out of memory: Killed process 2"]
    os.close(reader)


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/slurm/job_5", "slurm/job_5/memory.events"),
        ("4:memory:/slurm/job_5", "memory/slurm/job_5/memory.oom_control"),
        ("4:memory:/not/seen/here", "memory/memory.oom_control"),
    ],
)
def test_the_oom_killer_of_the_control_group_is_counted(tmp_path, proc, line, file):
    (proc / "self" / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    path = tmp_path / "cgroup" / file
    path.parent.mkdir(parents=True)
    path.write_text("oom 1\noom_kill 1\n")
    places = {"kernel": tmp_path / "none", "cgroups": tmp_path / "cgroup"}
    witness = Witness(proc=proc, **places)
    assert witness.lines() == []
    path.write_text("oom 3\noom_kill 3\n")
    assert witness.lines() == ["memory control group: oom_kill 2"]


def test_what_may_not_be_read_is_left_out(tmp_path):
    nothing = tmp_path / "nothing"
    assert Witness(proc=nothing, kernel=nothing, cgroups=nothing).lines() == []


def test_the_end_of_each_log_is_kept_without_secrets(tmp_path):
    source, target = tmp_path / "logs", tmp_path / "kept"
    (source / "old").mkdir(parents=True)
    (source / "raylet.out").write_bytes(b"a" * FILE_BYTES + b"key s3cretvalue end")
    (source / "old" / "worker-1.err").write_text("Traceback")
    (source / "empty.out").touch()
    (source / "link").symlink_to("/etc/passwd")
    kept = keep_logs(source, target, secrets=[b"s3cretvalue"])
    text = (target / "raylet.out").read_bytes()
    assert text.endswith(b"aakey *** end") and len(text) <= FILE_BYTES
    assert (target / "old" / "worker-1.err").read_text() == "Traceback"
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == [
        *("raylet.out", "worker-1.err")
    ]
    assert kept == len(text) + 9
    assert oct(target.stat().st_mode & 0o777) == "0o700"


def test_half_a_secret_is_hidden_too(tmp_path):
    source = tmp_path / "logs"
    source.mkdir()
    (source / "a.log").write_bytes(b"s3cretvalue" + b"b" * 10)
    keep_logs(source, tmp_path / "kept", room=15, secrets=[b"s3cretvalue"])
    assert (tmp_path / "kept" / "a.log").read_bytes() == b"***" + b"b" * 10


def test_room_goes_to_workers_first_and_time_is_limited(tmp_path):
    source = tmp_path / "logs"
    source.mkdir()
    for name in ("worker-1.out", "raylet.out", "monitor.log"):
        (source / name).write_text("x" * 100)
    assert keep_logs(source, tmp_path / "a", room=150) == 150
    assert {p.name: p.stat().st_size for p in (tmp_path / "a").iterdir()} == {
        **{"worker-1.out": 100, "raylet.out": 50}
    }
    assert keep_logs(source, tmp_path / "b", limit_s=0.0) == 0
    assert keep_logs(tmp_path / "none", tmp_path / "c") == 0


def test_a_file_that_cannot_be_written_hides_nothing_else(tmp_path):
    source, target = tmp_path / "logs", tmp_path / "kept"
    source.mkdir(), target.mkdir()
    (source / "worker-1.out").write_text("one")
    (source / "worker-2.out").write_text("two")
    (target / "worker-1.out").mkdir()
    assert keep_logs(source, target) == 3
    assert (target / "worker-2.out").read_text() == "two"


def test_many_nodes_share_the_room():
    assert node_share(1) == NODE_BYTES
    assert node_share(4096) == 2 * 2**20
    assert node_share(100_000) == FILE_BYTES


def test_secrets_are_known_by_name(tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    environ = {
        "HF_TOKEN": "hf_12345678",
        "WANDB_API_KEY": "short",
        "RAY_AUTH_TOKEN_PATH": "/tmp/somewhere",
        "HOME": "somewhere",
    }
    values = secret_values(environ, token, tmp_path / "gone")
    assert values == [b"0123456789abcdef", b"hf_12345678"]
    assert hidden(b"say hf_12345678!", values) == b"say ***!"


def test_the_last_words_of_a_worker(tmp_path):
    (tmp_path / "worker-ab-01-77.out").write_text(":actor_name:X\nstep 1\n")
    (tmp_path / "worker-ab-01-77.err").write_text("Fatal\n")
    (tmp_path / "worker-ab-01-7.err").write_text("another\n")
    assert worker_log(tmp_path, 77) == "step 1\nFatal\n"
    assert worker_log(tmp_path, 1) == ""
