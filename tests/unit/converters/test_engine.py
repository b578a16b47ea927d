"""Threads and processes that share weights: the same result, within the bound."""

from __future__ import annotations

import filecmp
import json
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
from nemo_rl.converters.families import model_spec, rules_for
from nemo_rl.converters.formats.safetensors_stream import plan_shards
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
        def prepare(self, number):
            nonlocal held, most
            with lock:
                held += conversion.costs[number]
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= conversion.costs[number]
            return {}, []

        def write(self, number, pieces):
            written.append(number)

    written = []
    with Crew(Counting(conversion, tmp_path), 4, 1) as crew:
        crew._limit = 165
        done = [number for number, _ in crew.copies(range(15))]
    assert written == done == list(range(15)) and 100 < most <= 165


def test_an_error_of_a_worker_is_raised_here(source, tmp_path):
    worker = Worker(Conversion(Request(source)), tmp_path / "gone")
    with Crew(worker, 2, 1) as crew, pytest.raises(FileNotFoundError):
        list(crew.copies([0, 1, 2]))


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
        "        list(crew.copies([0, 1, 2, 3]))\n"
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


MEASURE = """
import json, sys; from pathlib import Path
import torch
from nemo_rl.converters import convert
from nemo_rl.converters.cli import report
from nemo_rl.converters.conversion import Conversion, Request
source, target, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
interpreter = report.resident()
dtype = getattr(torch, dtype) if dtype else None
largest = Conversion(Request(source, dtype=dtype)).largest
convert.convert(source, target, dtype=dtype, threads=4)
print(json.dumps([report.peak(), interpreter + 2 * largest + (300 << 20)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["", "float16"])
def test_memory_stays_within_the_bound(tmp_path, dtype):
    """1 GB of zeros, which take no room on the disk, there and back."""
    source = tmp_path / "source"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 7,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    spec = model_spec(config)
    announced = [
        (name, spec.shape(dims), torch.bfloat16)
        for rule in rules_for(spec).values()
        for name, dims in rule.hf.items()
    ]
    (shard,) = plan_shards(announced, 1 << 40)
    assert shard.size > 1e9
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").write_bytes(shard.header)
    os.truncate(source / "model.safetensors", shard.size)
    for one, two in (("source", "there"), ("there", "back")):
        arguments = [str(tmp_path / one), str(tmp_path / two), dtype]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True
        )
        peak, bound = json.loads(done.stdout)
        assert peak <= bound, (peak, bound)
