"""Readings of nvidia-smi and psutil, averaged. A real GPU is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

from nemo_rl.distributed.worker_shell import Place
from nemo_rl.infra.monitor import (
    Monitor,
    SystemReading,
    parse_nvidia_smi,
    sample_nvidia_smi,
    worker_pids,
)


def test_parse_leaves_out_what_is_not_available():
    metrics = parse_nvidia_smi(
        "0, 98, 70123, 81559, 612.30, 55\n1, [N/A], 5, 9, x, 30\n"
    )
    assert metrics == {
        "gpu/0/utilization_percent": 98.0,
        "gpu/0/memory_used_mib": 70123.0,
        "gpu/0/memory_total_mib": 81559.0,
        "gpu/0/power_w": 612.3,
        "gpu/0/temperature_c": 55.0,
        "gpu/1/memory_used_mib": 5.0,
        "gpu/1/memory_total_mib": 9.0,
        "gpu/1/temperature_c": 30.0,
    }


def test_with_nothing_to_read_nothing_starts():
    monitor = Monitor(lambda metrics, step: 1 / 0, lambda: 1, [dict, dict])
    assert not monitor.start()
    monitor.stop()


def test_means_are_logged_at_the_present_step():
    logged, enough = [], threading.Event()
    values = iter([{"gpu/0/power_w": 10.0}, {"gpu/0/power_w": 30.0}, {}])

    def log_metrics(metrics, step):
        logged.append((metrics, step))
        enough.set()

    monitor = Monitor(
        log_metrics,
        lambda: 7,
        [lambda: next(values, {}), dict],
        collection_interval=0.01,
        flush_interval=0.02,
    )
    assert monitor.start()
    assert enough.wait(10)
    monitor.stop()
    assert logged[0] == ({"gpu/0/power_w": 20.0}, 7)
    assert all(metrics for metrics, _ in logged)


BUSY = """
block = bytearray(64 << 20)
print(len(block), flush=True)
while True: pass
"""


def test_a_busy_worker_is_seen_and_a_dead_one_left_out():
    worker = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    try:
        worker.stdout.readline()
        read = SystemReading(lambda: [worker.pid, 2**22 + 1])
        assert "system/cpu_percent" not in read()  # nothing to compare with yet
        for _ in range(200_000):  # the driver works too
            pass
        threading.Event().wait(0.2)
        found = read()
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    assert found["system/workers_cpu_percent"] > 5
    assert found["system/worker_memory_gib_max"] > 64 / 1024
    assert found["system/worker_memory_gib_max"] == found["system/workers_memory_gib"]
    assert found["system/driver_memory_gib"] > 0.01
    assert 0 < found["system/cpu_percent"] <= 100
    assert found["system/memory_available_gib"] > 0
    assert "system/workers_memory_gib" not in read()


def test_workers_of_a_policy_are_those_of_this_machine():
    def place(host, pid):
        return Place(host=host, address="", node_id="", pid=pid)

    places = [place(os.uname().nodename, 5), place("elsewhere", 6)]
    policy = SimpleNamespace(workers=SimpleNamespace(places=places))
    assert worker_pids(policy) == [5]
    assert worker_pids(None) == worker_pids(SimpleNamespace(workers=None)) == []


def test_a_program_that_fails_is_no_reading(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert sample_nvidia_smi() == {}
    program.write_text("#!/bin/sh\necho '3, 1, 2, 3, 4, 5'\n")
    assert sample_nvidia_smi()["gpu/3/power_w"] == 4.0
