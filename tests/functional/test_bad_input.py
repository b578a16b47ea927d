"""What a user gets wrong ends in one paragraph, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.functional import tiny_task
from tests.functional.driver import (
    merge,
    refuse_before_ray,
    run_driver,
    write_recipe,
)
from tests.functional.ranks import run_ranks

REWARD = """
def raises(prompt, response):
    return {}[prompt]
"""


def _random(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=0))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    (folder,) = run_ranks(_random, 1, tmp_path_factory.mktemp("bad") / "model")
    return Path(folder)


@pytest.fixture
def values(model) -> dict:
    return merge(
        tiny_task.recipe(model),
        {
            "grpo": {"max_num_steps": 2, "num_prompts_per_step": 4, "val_period": 0},
            "policy": {"train_micro_batch_size": 4},
        },
    )


def refused(values, tmp_path, *expected: str) -> str:
    """Run in a process of its own, check the form of the refusal, return its text."""
    done = run_driver(write_recipe(tmp_path / "recipe", values), tmp_path / "run")
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return checked(done.stderr, tmp_path / "run", *expected)


def refused_before_ray(values, tmp_path, *expected: str) -> str:
    """The same without a process, a Ray or a worker: these mistakes need none."""
    recipe = write_recipe(tmp_path / "recipe", values)
    text = refuse_before_ray(recipe, tmp_path / "run")
    return checked(text, tmp_path / "run", *expected)


def checked(stderr: str, run_dir: Path, *expected: str) -> str:
    """One paragraph that says what is expected, and nothing half-written."""
    message = stderr[stderr.rindex("nemo_rl: ") :]
    assert "Traceback" not in stderr
    assert "\n\n" not in message.strip()
    for text in expected:
        assert text in message, message
    checkpoints = run_dir / "checkpoints"
    left = {p.name for p in checkpoints.iterdir()} if checkpoints.exists() else set()
    assert not {name for name in left if "step_" in name or "hf" in name}, left
    return message


def test_unknown_model_folder(values, tmp_path):
    values["policy"]["model_name"] = str(tmp_path / "nowhere")
    refused_before_ray(values, tmp_path, "nowhere")


def test_folder_without_a_model(values, tmp_path):
    (tmp_path / "empty").mkdir()
    values["policy"]["model_name"] = str(tmp_path / "empty")
    refused_before_ray(values, tmp_path, "config.json")


@pytest.mark.slow
def test_wrong_shape_in_safetensors(values, model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name][:-2].contiguous()
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    values["policy"]["model_name"] = str(broken)
    refused(values, tmp_path, name, "expected [")


def test_empty_data_set(values, tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    values["data"] = {"dataset_name": str(tmp_path / "rows.jsonl")}
    values["env"] = {"name": "exact_match"}
    refused_before_ray(values, tmp_path, "rows.jsonl", "no rows")


def test_bad_row_names_file_line_and_field(values, tmp_path):
    rows = [{"prompt": "12>", "answer": "21"}, {"question": "34>"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    values["data"] = {"dataset_name": str(tmp_path / "rows.jsonl")}
    values["env"] = {"name": "exact_match"}
    values["grpo"]["num_prompts_per_step"] = 1
    refused_before_ray(values, tmp_path, "rows.jsonl", "line 2", "prompt")


def test_reward_that_raises(values, tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "my_rewards.py").write_text(REWARD)
    values["env"] = {"reward_fn": "my_rewards:raises"}
    refused(values, tmp_path, "raises", "KeyError")


def test_tensor_parallel_size_that_does_not_divide(values, tmp_path):
    values["policy"]["megatron_cfg"]["tensor_model_parallel_size"] = 3
    values["cluster"]["cpu_workers_per_node"] = 3
    refused_before_ray(
        values,
        tmp_path,
        "tensor_model_parallel_size=3",
        "4 attention heads and 2 key-value heads",
        "nearest valid: 2",
    )


def test_misspelt_key(values, tmp_path):
    values["grpo"]["num_generation_per_prompt"] = 4
    refused(values, tmp_path, "Did you mean num_generations_per_prompt?")


def test_checkpoint_directory_that_is_a_file(values, tmp_path):
    (tmp_path / "taken").write_text("")
    values["checkpointing"]["checkpoint_dir"] = str(tmp_path / "taken")
    refused_before_ray(values, tmp_path, "taken")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small tmpfs")
def test_full_disk_keeps_the_last_good_checkpoint(values, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        values["checkpointing"] = {
            "checkpoint_dir": str(disk / "checkpoints"),
            "save_period": 1,
            "metric_name": None,
            "keep_top_k": 5,
        }
        values["grpo"]["max_num_steps"] = 8
        recipe = write_recipe(tmp_path / "recipe", values)
        done = run_driver(recipe, tmp_path / "run")
        assert done.returncode == 2, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        assert "disk" in done.stderr.lower()
        left = {p.name for p in (disk / "checkpoints").iterdir()}
        assert {n for n in left if n.startswith("step_")}
        assert not {n for n in left if ".tmp" in n}
    finally:
        subprocess.run(["umount", str(disk)], check=True)
