"""Monitor: what GPUs, processors and memory are doing, beside the training's metrics.

Knows nothing of training: it is given readings to take and a place to log them.
"""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nemo_rl.utils.imports import require

log = logging.getLogger(__name__)

_FIELDS = {
    "utilization.gpu": "utilization_percent",
    "memory.used": "memory_used_mib",
    "memory.total": "memory_total_mib",
    "power.draw": "power_w",
    "temperature.gpu": "temperature_c",
}


class Monitor:
    """Takes readings in a thread and logs the mean of each value at intervals.

    Args:
        log_metrics: called as log_metrics(metrics, step).
        current_step: the step to log at.
        readings: each gives tag -> number, or {} where there is nothing to read.
        collection_interval: seconds between readings.
        flush_interval: seconds between two calls of `log_metrics`.
    """

    def __init__(
        self,
        log_metrics: Callable[[Mapping[str, float], int], Any],
        current_step: Callable[[], int],
        readings: Sequence[Callable[[], dict[str, float]]],
        *,
        collection_interval: float = 10.0,
        flush_interval: float = 10.0,
    ) -> None:
        """Prepare; `start` begins to read."""
        self._log_metrics = log_metrics
        self._current_step = current_step
        self._readings = list(readings)
        self._collect_s = collection_interval
        self._per_flush = max(1, round(flush_interval / collection_interval))
        self._rows: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Begin to read; False where there is nothing to read."""
        first = self._read()
        if not first:
            log.info("there is nothing to monitor: no GPU is visible to nvidia-smi")
            return False
        self._rows.append(first)
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()
        return True

    def stop(self) -> None:
        """End the thread and log what has been read since the last flush."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30.0)
            self._thread = None
            self._flush()

    def _run(self) -> None:
        while not self._stop.wait(self._collect_s):
            self._rows.append(self._read())
            if len(self._rows) >= self._per_flush:
                self._flush()

    def _read(self) -> dict[str, float]:
        return {tag: value for read in self._readings for tag, value in read().items()}

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


class SystemReading:
    """Processor and memory of this machine, of this process and of the workers on it.

    Tags: ``system/cpu_percent`` (of all cores, 0 to 100) and
    ``system/memory_available_gib`` of the machine; ``system/driver_cpu_percent`` and
    ``system/workers_cpu_percent`` (100 is one core); ``system/driver_memory_gib``,
    ``system/workers_memory_gib`` and ``system/worker_memory_gib_max`` (resident, with
    what is shared counted in each). Workers on other machines are not seen.

    Args:
        worker_pids: processes of the workers on this machine, asked anew every time.

    Raises:
        ConfigurationError: psutil is not installed.
    """

    def __init__(self, worker_pids: Callable[[], Iterable[int]]) -> None:
        """Read nothing yet."""
        self._psutil = require("psutil", instead="set logger.monitor_system to false")
        self._worker_pids = worker_pids
        self._driver = self._psutil.Process()
        self._workers: dict[int, Any] = {}
        self._counting = False

    def __call__(self) -> dict[str, float]:
        """Read once; processor time is that since the last reading, if there is one."""
        available = self._psutil.virtual_memory().available
        found = {
            "system/memory_available_gib": available / 2**30,
            "system/driver_memory_gib": self._driver.memory_info().rss / 2**30,
        }
        shares = {
            "system/cpu_percent": self._psutil.cpu_percent(),
            "system/driver_cpu_percent": self._driver.cpu_percent(),
        }
        if self._counting:
            found |= shares
        self._counting = True
        return found | self._of_workers()

    def _of_workers(self) -> dict[str, float]:
        shares, sizes = [], []
        for pid in self._worker_pids():
            try:
                if pid not in self._workers:
                    self._workers[pid] = self._psutil.Process(pid)
                    self._workers[pid].cpu_percent()
                worker = self._workers[pid]
                shares.append(worker.cpu_percent())
                sizes.append(worker.memory_info().rss / 2**30)
            except self._psutil.Error:  # it has ended; the worker group says so
                continue
        if not sizes:
            return {}
        return {
            "system/workers_cpu_percent": sum(shares),
            "system/workers_memory_gib": sum(sizes),
            "system/worker_memory_gib_max": max(sizes),
        }


def worker_pids(policy: Any) -> list[int]:
    """Processes of a policy's workers on this machine; none where it has no such."""
    places = getattr(getattr(policy, "workers", None), "places", [])
    return [place.pid for place in places if place.host == socket.gethostname()]


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
