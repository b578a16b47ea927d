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
from tests.functional.driver import merge, run_driver, succeed, write_recipe
from tests.functional.ranks import run_ranks

REWARDS = """
def raises(prompt, response):
    return {}[prompt]

def not_a_number(prompt, response):
    return float("nan")
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
    """Run, check the form of the refusal, return its text."""
    done = run_driver(write_recipe(tmp_path / "recipe", values), tmp_path / "run")
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    message = done.stderr[done.stderr.rindex("nemo_rl: ") :]
    assert "Traceback" not in done.stderr
    assert "\n\n" not in message.strip()
    for text in expected:
        assert text in message, message
    checkpoints = tmp_path / "run" / "checkpoints"
    left = {p.name for p in checkpoints.iterdir()} if checkpoints.exists() else set()
    assert not {name for name in left if "step_" in name or "hf" in name}, left
    return message


def test_unknown_model_folder(values, tmp_path):
    values["policy"]["model_name"] = str(tmp_path / "nowhere")
    refused(values, tmp_path, "nowhere")


def test_folder_without_a_model(values, tmp_path):
    (tmp_path / "empty").mkdir()
    values["policy"]["model_name"] = str(tmp_path / "empty")
    refused(values, tmp_path, "config.json")


def test_wrong_shape_in_safetensors(values, model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name][:-2].contiguous()
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    values["policy"]["model_name"] = str(broken)
    refused(values, tmp_path, name, "expected [")


def test_truncated_safetensors(values, model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    file = broken / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    values["policy"]["model_name"] = str(broken)
    refused(values, tmp_path, "model.safetensors", "truncated")


def test_empty_data_set(values, tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    values["data"] = {"dataset_name": str(tmp_path / "rows.jsonl")}
    values["env"] = {"name": "exact_match"}
    refused(values, tmp_path, "rows.jsonl", "no rows")


def test_bad_row_names_file_line_and_field(values, tmp_path):
    rows = [{"prompt": "12>", "answer": "21"}, {"question": "34>"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    values["data"] = {"dataset_name": str(tmp_path / "rows.jsonl")}
    values["env"] = {"name": "exact_match"}
    values["grpo"]["num_prompts_per_step"] = 1
    refused(values, tmp_path, "rows.jsonl", "line 2", "prompt")


@pytest.mark.parametrize("name", ["raises", "not_a_number"])
def test_reward_that_fails(values, tmp_path, name):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "my_rewards.py").write_text(REWARDS)
    values["env"] = {"reward_fn": f"my_rewards:{name}"}
    refused(values, tmp_path, name, "KeyError" if name == "raises" else "nan")


def test_tensor_parallel_size_that_does_not_divide(values, tmp_path):
    values["policy"]["megatron_cfg"]["tensor_model_parallel_size"] = 3
    values["cluster"]["cpu_workers_per_node"] = 3
    refused(
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
    refused(values, tmp_path, "taken")


def test_truncated_checkpoint_falls_back_and_all_truncated_is_refused(values, tmp_path):
    values["checkpointing"] |= {"save_period": 1, "keep_top_k": 3}
    recipe = write_recipe(tmp_path / "recipe", values)
    succeed(recipe, tmp_path / "run")
    steps = [tmp_path / f"run/checkpoints/step_{n:06d}" for n in (1, 2)]
    _truncate(steps[1])
    more = merge(values, {"grpo": {"max_num_steps": 3}})
    recipe = write_recipe(tmp_path / "recipe", more)
    done = succeed(recipe, tmp_path / "run")
    assert "after step 1" in done.stdout
    assert "step_000002" in done.stderr  # the warning names what is damaged
    for step in (tmp_path / "run/checkpoints").glob("step_*"):
        _truncate(step)
    done = run_driver(recipe, tmp_path / "run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "damaged" in done.stderr


def _truncate(checkpoint: Path) -> None:
    file = max(checkpoint.rglob("*.distcp"), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


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
