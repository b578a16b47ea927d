"""Threads and processes that share weights: the same result, within the bound."""

from __future__ import annotations

import filecmp
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from nemo_rl.converters.conversion import Conversion, Request
from nemo_rl.converters.convert import convert
from nemo_rl.converters.engine import Crew, Worker
from nemo_rl.utils.exceptions import CheckpointError
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=False, layers=2, hidden=32)


def same(one, two):
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    others = sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    equal = all(filecmp.cmp(one / n, two / n, shallow=False) for n in names)
    return names == others and equal


def test_any_number_of_workers_writes_the_same_bytes(source, tmp_path):
    one = convert(source, tmp_path / "one", threads=1)
    assert same(one, convert(source, tmp_path / "many", threads=8))


@pytest.mark.slow
def test_processes_write_the_same_bytes(source, tmp_path):
    one = convert(source, tmp_path / "one", threads=1)
    assert same(one, convert(source, tmp_path / "both", processes=2))


def test_weights_wait_until_their_memory_is_free(source, tmp_path):
    """The largest weights are handed out one at a time, small ones beside them."""
    conversion = Conversion(Request(source))
    conversion.costs = [100 if n % 3 else 60 for n in range(len(conversion.plan))]
    held, most, lock = 0, 0, threading.Lock()

    class Counting(Worker):
        def copy(self, number):
            nonlocal held, most
            with lock:
                held += conversion.costs[number]
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= conversion.costs[number]
            return {}

    with Crew(Counting(conversion, tmp_path), 4, 1) as crew:
        crew._limit = 165
        done = [number for number, _ in crew.run("copy", range(15))]
    assert sorted(done) == list(range(15)) and 100 < most <= 165


def test_an_error_of_a_worker_is_raised_here(source, tmp_path):
    worker = Worker(Conversion(Request(source)), tmp_path / "gone")
    with Crew(worker, 2, 1) as crew, pytest.raises(FileNotFoundError):
        list(crew.run("copy", [0, 1, 2]))


def test_a_dtype_that_is_not_the_plans_is_found(source, tmp_path):
    result = convert(source, tmp_path / "m")
    conversion = Conversion(Request(source, dtype=torch.float16))
    with pytest.raises(CheckpointError, match="is torch.float32 in the result"):
        Worker(conversion, result).check(0)


@pytest.mark.slow
def test_helpers_end_with_the_process_that_they_help(source, tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from nemo_rl.converters.conversion import Conversion, Request\n"
        "from nemo_rl.converters.engine import Crew, Worker\n"
        "if __name__ == '__main__':\n"
        "    source, folder = map(Path, sys.argv[1:])\n"
        "    conversion = Conversion(Request(source))\n"
        "    for name, size in conversion.target.files.items():\n"
        "        os.truncate(os.open(folder / name, os.O_CREAT | os.O_RDWR), size)\n"
        "    with Crew(Worker(conversion, folder), 1, 2) as crew:\n"
        "        list(crew.run('copy', [0, 1, 2, 3]))\n"
        "        print(*crew._pool._processes, flush=True)\n"
        "        time.sleep(60)\n"
    )
    (tmp_path / "main.py").write_text(code)
    command = [sys.executable, tmp_path / "main.py", source, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        helpers = [int(pid) for pid in parent.stdout.readline().split()]
        assert helpers
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in helpers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(pid) for pid in helpers)


def _alive(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
