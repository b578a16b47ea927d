"""Runs that hang, on this machine: told of, explained, saved where that can be, ended.

tests/slurm/test_watchdog.py has a job of several nodes.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.functional import tiny_task
from tests.functional.driver import command, environment, merge, write_recipe

HUNG = 75
LIMIT_S = 9

REWARD = '''
"""Answers eight times, then no more."""

import time

calls = 0


def score(prompt: str, response: str) -> float:
    global calls
    calls += 1
    if calls > 8:
        ask_a_server_that_is_gone()
    return float(len(response))


def ask_a_server_that_is_gone() -> None:
    while True:
        time.sleep(1)
'''


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_task.make_model(tmp_path_factory.mktemp("model"), sft_steps=0)


def recipe(model: Path, folder: Path, **changes: object) -> Path:
    values = merge(
        tiny_task.recipe(model),
        {
            "policy": {"train_micro_batch_size": 2},
            "grpo": {
                "num_prompts_per_step": 2,
                "num_generations_per_prompt": 2,
                "max_num_steps": 1000,
                "val_period": 0,
                "val_at_start": False,
            },
            "checkpointing": {"export_hf": False},
            "cluster": {"hang_timeout_s": LIMIT_S},
            **changes,
        },
    )
    return write_recipe(folder, values)


def run(path: Path, run_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(path, run_dir),
        env=environment(),
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_reward_that_never_returns_is_named_and_its_last_step_saved(model, tmp_path):
    env = {"reward_fn": "stuck:score", "num_workers": 0}
    path = recipe(model, tmp_path, env=env)
    (tmp_path / "stuck.py").write_text(REWARD)
    process = run(path, tmp_path / "run")
    text, _ = process.communicate(timeout=200)
    assert process.returncode == HUNG, text[-3000:]
    assert re.search(r"nothing has moved for \d s \(limit 9 s\)", text), text
    told = text[text.rindex("nothing has moved for") :]
    print(told)
    assert "It waits for driver on" in told
    assert re.search(r"stuck\.py:\d+ in ask_a_server_that_is_gone", told)
    assert "PolicyWorker rank 1" in told
    saved = tmp_path / "run" / "checkpoints" / "step_000002"
    assert f"saved {saved}" in told.replace("\n", "")
    assert (saved / "manifest.json").is_file()
    stacks = (tmp_path / "run" / "stacks.txt").read_text()
    assert "ask_a_server_that_is_gone" in stacks
    assert "==== PolicyWorker rank 0" in stacks
    assert "nemo_rl: nothing has moved" in told


@pytest.mark.slow
def test_a_worker_that_stands_still_is_named(model, tmp_path):
    process = run(recipe(model, tmp_path), tmp_path / "run")
    said: list[str] = []
    stopped: list[int] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout))
    reader.start()
    deadline = time.monotonic() + 120
    while not any("step 2" in line or "2/1000" in line for line in said):
        assert process.poll() is None and time.monotonic() < deadline, "".join(said)
        time.sleep(0.1)
    stopped += workers_of(process.pid)[:1]
    os.kill(stopped[0], signal.SIGSTOP)
    began = time.monotonic()
    assert process.wait(timeout=250) == HUNG, "".join(said)[-3000:]
    reader.join()
    took, text = time.monotonic() - began, "".join(said)
    print(f"a stopped worker: limit {LIMIT_S} s, ended after {took:.0f} s")
    pattern = rf"It waits for PolicyWorker rank \d on \S+ \(process {stopped[0]}\)"
    assert re.search(pattern + ", which stopped", text), text[-3000:]
    assert not Path(f"/proc/{stopped[0]}").exists()


def workers_of(root: int) -> list[int]:
    """Ray's actor processes below a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_text()
                parents = _parents(int(entry.name))
            except OSError:
                continue
            if "ray::WorkerShell" in name and root in parents:
                found.append(int(entry.name))
    return sorted(found)


def _parents(pid: int) -> list[int]:
    found = []
    while pid > 1:
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(re.findall(r"PPid:\s*(\d+)", status)[0])
        found.append(pid)
    return found
