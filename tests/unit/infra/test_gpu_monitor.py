"""Reading nvidia-smi's answer and averaging it. A real GPU is not needed."""

from __future__ import annotations

import os
import threading

from nemo_rl.infra.gpu_monitor import (
    GpuMonitor,
    parse_nvidia_smi,
    sample_nvidia_smi,
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


def test_without_gpus_nothing_starts():
    monitor = GpuMonitor(lambda metrics, step: 1 / 0, lambda: 1, sample=dict)
    assert not monitor.start()
    monitor.stop()


def test_means_are_logged_at_the_present_step():
    logged, enough = [], threading.Event()
    values = iter([{"gpu/0/power_w": 10.0}, {"gpu/0/power_w": 30.0}, {}])

    def log_metrics(metrics, step):
        logged.append((metrics, step))
        enough.set()

    monitor = GpuMonitor(
        log_metrics,
        lambda: 7,
        collection_interval=0.01,
        flush_interval=0.02,
        sample=lambda: next(values, {}),
    )
    assert monitor.start()
    assert enough.wait(10)
    monitor.stop()
    assert logged[0] == ({"gpu/0/power_w": 20.0}, 7)
    assert all(metrics for metrics, _ in logged)


def test_a_program_that_fails_is_no_reading(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert sample_nvidia_smi() == {}
    program.write_text("#!/bin/sh\necho '3, 1, 2, 3, 4, 5'\n")
    assert sample_nvidia_smi()["gpu/3/power_w"] == 4.0
