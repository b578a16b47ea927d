"""Train 2N steps = train N, SIGKILL, resume N: to the bit, through the real driver.

Covers weights, optimizer, generators, data order, rollouts and metrics under the same
layout, and a resume under another one. Does not cover a power failure.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.functional import tiny_task
from tests.functional.driver import (
    command,
    environment,
    merge,
    refuse_before_ray,
    succeed,
    write_recipe,
)
from tests.functional.ranks import run_ranks

STEPS = 12
HALF = 6


REWARD = '''
"""Share of right digits: a reward that differs within almost every group."""


def score(prompt: str, response: str, answer: str) -> float:
    return sum(a == b for a, b in zip(response, answer)) / len(answer)
'''


def _warm(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=30))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    (folder,) = run_ranks(_warm, 1, tmp_path_factory.mktemp("resume") / "model")
    return Path(folder)


def recipe_values(model: Path) -> dict:
    """Two updates per step and a KL term, so that every piece of state matters."""
    return merge(
        tiny_task.recipe(model),
        {
            "policy": {
                "train_global_batch_size": 16,
                "train_micro_batch_size": 4,
                "scheduler": [
                    {
                        "name": "torch.optim.lr_scheduler.LinearLR",
                        "kwargs": {"start_factor": 0.1, "total_iters": 30},
                    }
                ],
            },
            "grpo": {
                "num_prompts_per_step": 8,
                "num_generations_per_prompt": 4,
                "max_num_steps": STEPS,
                "val_period": 5,
                "max_val_samples": 16,
            },
            "loss_fn": {"reference_policy_kl_penalty": 0.05},
            "checkpointing": {"save_period": HALF, "metric_name": "val:accuracy"},
            "logger": {"save_rollouts": True},
            "env": {"reward_fn": "graded:score"},
        },
    )


def write(folder: Path, values: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "graded.py").write_text(REWARD)
    return write_recipe(folder, values)


@pytest.fixture(scope="module")
def straight(model, tmp_path_factory) -> Path:
    """The folder of a run without interruption; tests go on from copies of it."""
    folder = tmp_path_factory.mktemp("straight")
    succeed(write(folder, recipe_values(model)), folder / "run")
    return folder / "run"


def kill_after_first_checkpoint(recipe: Path, run_dir: Path) -> None:
    process = subprocess.Popen(
        command(recipe, run_dir),
        env=environment(),
        cwd=recipe.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    metrics = run_dir / "logs" / "metrics.jsonl"
    try:
        while time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            if (run_dir / f"checkpoints/step_{HALF:06d}").exists() and any(
                row["step"] > HALF for row in rows(metrics)
            ):
                return
            time.sleep(0.02)
        raise AssertionError("no checkpoint in 200 s")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a line that is being written
    return found


def comparable(row: dict) -> dict:
    """A metrics row without what measures the machine."""
    volatile = ("timing/", "per_s", "tflops", "cpu_s", "peak_memory", "time")
    return {k: v for k, v in row.items() if not any(part in k for part in volatile)}


def tensors(checkpoint: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the distributed checkpoint, by name."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    target = scratch / "tensors.pt"
    dcp_to_torch_save(str(checkpoint / "policy" / "weights"), str(target))
    found: dict[str, torch.Tensor] = {}

    def collect(value, name):
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(item, f"{name}/{key}")
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                collect(item, f"{name}/{number}")

    collect(torch.load(target, weights_only=False), "")
    return found


def test_resume_is_exact_to_the_bit(model, straight, tmp_path):
    recipe = write(tmp_path, recipe_values(model))
    broken = tmp_path / "broken"
    kill_after_first_checkpoint(recipe, broken)
    reached = max(row["step"] for row in rows(broken / "logs" / "metrics.jsonl"))
    assert HALF < reached < STEPS
    done = succeed(recipe, broken)
    assert f"after step {HALF}" in done.stdout

    last = f"checkpoints/step_{STEPS:06d}"
    want, got = (tensors(run / last, tmp_path) for run in (straight, broken))
    assert want.keys() == got.keys()
    assert sum("exp_avg" in name for name in want) >= 2
    assert [name for name in want if not torch.equal(want[name], got[name])] == []
    # It says nothing unless the second half still learns.
    half = tensors(straight / f"checkpoints/step_{HALF:06d}", tmp_path)
    moved = [name for name in want if not torch.equal(want[name], half[name])]
    assert len(moved) == len(want)
    for rank in (0, 1):
        file = f"{last}/policy/generators/rank{rank:05d}.pt"
        one = torch.load(straight / file, weights_only=True)
        two = torch.load(broken / file, weights_only=True)
        assert torch.equal(one["torch"], two["torch"])
        assert one["python"] == two["python"]
    states = [
        json.loads((run / last / "trainer_state.json").read_text())
        for run in (straight, broken)
    ]
    assert states[0]["data"] == states[1]["data"]
    assert states[0]["consumed_samples"] == states[1]["consumed_samples"]

    for name in ("metrics.jsonl", "rollouts.jsonl"):
        one, two = (rows(run / "logs" / name) for run in (straight, broken))
        assert len(one) > STEPS
        assert [comparable(r) for r in one] == [comparable(r) for r in two]


def truncate(checkpoint: Path) -> None:
    file = max(checkpoint.rglob("*.distcp"), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


@dataclass
class Continued:
    """A copy of the straight run that went on; its last checkpoint was cut before."""

    recipe: Path
    run_dir: Path
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def continued(model, straight, tmp_path_factory) -> Continued:
    """Under another layout, for two steps beyond the checkpoint that is whole."""
    folder = tmp_path_factory.mktemp("continued")
    run_dir = shutil.copytree(straight, folder / "run")
    truncate(run_dir / f"checkpoints/step_{STEPS:06d}")
    values = merge(
        recipe_values(model),
        {
            "grpo": {"max_num_steps": HALF + 2},
            "policy": {"megatron_cfg": {"tensor_model_parallel_size": 2}},
        },
    )
    recipe = write(folder, values)
    done = succeed(recipe, run_dir)
    return Continued(recipe, run_dir, done.stdout, done.stderr)


def test_resume_under_another_layout_goes_on(continued):
    assert f"after step {HALF}" in continued.stdout
    steps = [r["step"] for r in rows(continued.run_dir / "logs/rollouts.jsonl")]
    assert max(steps) == HALF + 2
    logged = rows(continued.run_dir / "logs/metrics.jsonl")
    norms = [r["train/grad_norm"] for r in logged if "train/grad_norm" in r]
    assert len(norms) == HALF + 2
    assert norms[-1] > 0


def test_resume_falls_back_from_a_truncated_checkpoint(continued):
    assert f"after step {HALF}" in continued.stdout
    assert f"step_{STEPS:06d}" in continued.stderr  # the warning names what is damaged


def test_resume_refuses_when_all_checkpoints_are_truncated(continued, tmp_path):
    run_dir = shutil.copytree(continued.run_dir, tmp_path / "run")
    for step in (run_dir / "checkpoints").glob("step_*"):
        truncate(step)
    assert "damaged" in refuse_before_ray(continued.recipe, run_dir)


def test_resume_refuses_another_models_checkpoint(model, straight, tmp_path):
    run_dir = shutil.copytree(straight, tmp_path / "run")
    (other,) = run_ranks(_other, 1, tmp_path / "other")
    changed = merge(recipe_values(model), {"policy": {"model_name": other}})
    text = refuse_before_ray(write(tmp_path, changed), run_dir)
    assert "base_weights" in text


def _other(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=1, seed=3))
