"""GpuMonitor: a thread that samples nvidia-smi and hands averages to a logger.

It sees the GPUs of the node it runs on, which is the driver's; without nvidia-smi
it stays silent.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

_FIELDS = {
    "utilization.gpu": "utilization_percent",
    "memory.used": "memory_used_mib",
    "memory.total": "memory_total_mib",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
}


class GpuMonitor:
    """Samples every GPU and logs the mean of each value at intervals.

    Args:
        log_metrics: called as log_metrics(metrics, step), tags gpu/<index>/<value>.
        current_step: the step to log at.
        collection_interval: seconds between samples.
        flush_interval: seconds between two calls of `log_metrics`.
        sample: reads the GPUs once; nvidia-smi unless a test gives another.
    """

    def __init__(
        self,
        log_metrics: Callable[[Mapping[str, float], int], Any],
        current_step: Callable[[], int],
        *,
        collection_interval: float = 10.0,
        flush_interval: float = 10.0,
        sample: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Prepare; `start` begins to sample."""
        self._log_metrics = log_metrics
        self._current_step = current_step
        self._collect_s = collection_interval
        self._per_flush = max(1, round(flush_interval / collection_interval))
        self._sample = sample or sample_nvidia_smi
        self._rows: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Begin to sample; False where there are no GPUs to read."""
        first = self._sample()
        if not first:
            log.info("no GPU is visible to nvidia-smi: GPUs are not monitored")
            return False
        self._rows.append(first)
        self._thread = threading.Thread(
            target=self._run, name="gpu-monitor", daemon=True
        )
        self._thread.start()
        return True

    def stop(self) -> None:
        """End the thread and log what has been sampled since the last flush."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30.0)
            self._thread = None
            self._flush()

    def _run(self) -> None:
        while not self._stop.wait(self._collect_s):
            self._rows.append(self._sample())
            if len(self._rows) >= self._per_flush:
                self._flush()

    def _flush(self) -> None:
        rows, self._rows = [row for row in self._rows if row], []
        if not rows:
            return
        tags = sorted({tag for row in rows for tag in row})
        means = {
            tag: sum(values) / len(values)
            for tag in tags
            if (values := [row[tag] for row in rows if tag in row])
        }
        self._log_metrics(means, self._current_step())


def sample_nvidia_smi() -> dict[str, float]:
    """One reading of all GPUs of this node; {} where that is not possible."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = ",".join(["index", *_FIELDS])
    command = [program, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("nvidia-smi failed: %s", error)
        return {}
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> dict[str, float]:
    """Read lines "0, 98, 70123, 81559, 612.3, 55"; "[N/A]" values are left out."""
    metrics: dict[str, float] = {}
    for line in text.splitlines():
        index, *values = [part.strip() for part in line.split(",")]
        for name, value in zip(_FIELDS.values(), values, strict=False):
            try:
                metrics[f"gpu/{index}/{name}"] = float(value)
            except ValueError:
                continue
    return metrics
