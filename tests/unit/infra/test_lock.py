"""One holder per folder; the lock of the dead is taken, the living one's is not.

Another host is played by a lock file with another host's name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nemo_rl.infra.lock import DirectoryLock, read_holder
from nemo_rl.utils.exceptions import CheckpointError

HOLD = """
import sys, time
from pathlib import Path
from nemo_rl.infra.lock import DirectoryLock
DirectoryLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def start_holder(directory: Path) -> subprocess.Popen:
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    process = start_holder(tmp_path)
    try:
        with pytest.raises(CheckpointError) as error:
            DirectoryLock(tmp_path).acquire()
        assert f"in use by process {process.pid} on host" in str(error.value)
    finally:
        process.kill()
    process.wait()
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    assert lock.is_mine() and lock.holder().pid == os.getpid()
    lock.release()
    assert lock.holder() is None


def test_a_zombie_counts_as_dead(tmp_path):
    process = start_holder(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    DirectoryLock(tmp_path).acquire()
    process.wait()


def test_a_reused_pid_counts_as_dead(tmp_path):
    process = start_holder(tmp_path)
    try:
        holder = read_holder(tmp_path / ".lock")
        other = replace(holder, process_start="1")
        (tmp_path / ".lock").write_text(json.dumps(asdict(other)))
        DirectoryLock(tmp_path).acquire()
    finally:
        process.kill()
        process.wait()


def foreign_lock(directory: Path) -> Path:
    lock = DirectoryLock(directory)
    lock.acquire()
    holder = replace(lock.holder(), host="elsewhere", token="theirs")
    lock.release()
    path = directory / ".lock"
    path.write_text(json.dumps(asdict(holder)))
    return path


def test_another_hosts_lock_without_a_heartbeat_is_taken_over(tmp_path):
    foreign_lock(tmp_path)
    lock = DirectoryLock(tmp_path, heartbeat_s=0.05, patience_s=0.3)
    lock.acquire()
    assert lock.is_mine()


def test_another_hosts_lock_with_a_heartbeat_is_respected(tmp_path):
    path = foreign_lock(tmp_path)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        started = time.monotonic()
        with pytest.raises(CheckpointError, match="on host elsewhere"):
            DirectoryLock(tmp_path, heartbeat_s=0.05, patience_s=20).acquire()
        assert time.monotonic() - started < 10
    finally:
        stop.set()
        thread.join()


def test_the_heartbeat_moves_the_lock(tmp_path):
    lock = DirectoryLock(tmp_path, heartbeat_s=0.02)
    lock.acquire()
    before = os.stat(tmp_path / ".lock").st_mtime_ns
    deadline = time.monotonic() + 10
    while os.stat(tmp_path / ".lock").st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lock.release()


def test_an_unreadable_lock_is_watched_then_taken(tmp_path):
    (tmp_path / ".lock").write_text("no json")
    lock = DirectoryLock(tmp_path, heartbeat_s=0.05, patience_s=0.2)
    lock.acquire()
    assert lock.is_mine()


def test_release_leaves_another_ones_lock(tmp_path):
    older, newer = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    older.acquire()
    newer.acquire()
    assert not older.is_mine() and older.was_taken
    older.release()
    assert newer.is_mine()


def test_acquire_twice_keeps_the_lock(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    token = lock.holder().token
    lock.acquire()
    assert lock.holder().token == token
