"""Rehearsals from the command line to the table: a recipe for 16 GPUs, and mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_rl.launch.rehearsal.program import Rehearsal
from nemo_rl.launch.rehearsal.stages import NAMES, Stages
from nemo_rl.utils.exceptions import ConfigurationError, NemoRLError
from tests.unit.launch.rehearsal.test_model import llama8b  # noqa: F401

ROOT = Path(__file__).parents[2]
ALONE = ("policy.megatron_cfg.tensor_model_parallel_size=1",) + (
    "policy.megatron_cfg.pipeline_model_parallel_size=1",
)


def with_rows(folder: Path) -> list[str]:
    """Overrides of grpo_llama8b: a model without weights, rows of one's own."""
    rows = [
        {"prompt": f"What is {k} + {k}? Think well.", "answer": str(2 * k)}
        for k in range(64)
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"policy.model_name={folder}",
        f"data.dataset_name={file}",
        "data.dataset_kwargs={}",
    ]


def rehearse(name: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "nemo_rl.launch", name, "--rehearse", "--json"]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        **options,
    )


def verdicts(document: dict) -> dict[str, str]:
    return {row["stage"]: row["verdict"] for row in document["stages"]}


def test_a_recipe_for_16_gpus_is_played_in_one_process(llama8b):  # noqa: F811
    overrides = [*with_rows(llama8b), "data.split_validation_size=8"]
    done = rehearse("grpo_llama8b", *overrides, "grpo.val_period=5", *ALONE)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(verdicts(document)) == set(NAMES)
    assert set(verdicts(document).values()) == {"ok"}
    what = {row["stage"]: row["what"] for row in document["stages"]}
    assert "32 layers of 4096 channels; its weights are not here" in what["model"]
    assert "56 rows, 1 step an epoch at" in what["data"]
    assert "as they stand 0, boxed 1" in what["environment"]
    assert "1 process on CPUs instead of 16 GPUs dp16" in document["differs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage"),
    [("dpo_smollm2_cpu", "validation"), ("eval_smollm2_cpu", "answers")],
)
def test_other_algorithms(name, stage):
    done = rehearse(name)
    assert done.returncode == 0, done.stderr
    assert verdicts(json.loads(done.stdout))[stage] == "ok"


@pytest.mark.slow
def test_a_model_in_parts_is_shared_by_two_processes(llama8b):  # noqa: F811
    done = rehearse("grpo_llama8b", *with_rows(llama8b))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (
        "2 processes, tp2 on CPUs instead of 16 GPUs tp4 pp2 dp2"
        in (document["differs"])
    )
    assert verdicts(document)["resume"] == "ok"


def played(recipe: str, folder: Path, *overrides: str, **options) -> list[dict]:
    """Play in this process up to the error that is expected; what was told."""
    told: list[dict] = []
    stages = Stages(told.append)
    path = ROOT / "recipes" / f"{recipe}.yaml"
    with pytest.raises(NemoRLError) as caught:
        Rehearsal(path, overrides, folder, options.get("stand_in"), stages).run()
    return [*told, {"failed": stages.failed, "error": caught.value}]


@pytest.mark.parametrize(
    ("override", "stage", "message"),
    [
        ("env.reward_fn=grpo_llama8b:boxed", "environment", "has no 'boxed'"),
        ("grpo.num_prompts_per_step=128", "data", "A step takes 128 rows"),
        ("data.prompt_key=question", "data", "question"),
        ("policy.hf_config_overrides={num_hidden_layers: 3}", "model", "the 3 layers"),
        ("policy.tokenizer.chat_template=nowhere.jinja", "tokenizer", "nowhere.jinja"),
    ],
)
def test_a_mistake_is_named_by_its_stage(llama8b, tmp_path, override, stage, message):  # noqa: F811
    told = played("grpo_llama8b", tmp_path, *with_rows(llama8b), override)
    assert told[-1]["failed"] == stage
    assert message in str(told[-1]["error"])
    assert told[-1]["error"].exit_code == 2


def test_a_model_that_is_not_here_leaves_rows_and_reward(llama8b, tmp_path):  # noqa: F811
    overrides = [*with_rows(llama8b), "policy.model_name=nobody/nothing"]
    told = played("grpo_llama8b", tmp_path, *overrides)
    assert told[-1]["failed"] == "model"
    assert isinstance(told[-1]["error"], ConfigurationError)
    done = {each["done"]: each["detail"] for each in told if "done" in each}
    assert done["data"] == "64 rows; not through tokenizer and template"
    assert done["environment"] == "made; scored nothing"
