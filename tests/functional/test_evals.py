"""`nemo-rl eval` and `diagnose`: a checkpoint of a run, on two tensor-parallel ranks.

The checkpoint is a real one, written by the engine; its answers are compared with those
of the Hugging Face model that it was made from.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_rl.infra.manifest import write_manifest
from tests.functional import tiny_task
from tests.functional.driver import environment
from tests.functional.engines import engine, policy_config
from tests.functional.ranks import run_ranks


def _checkpoint(rank, folder: Path) -> list[str]:
    """A model after some teaching, as a checkpoint; its own greedy answers."""
    import torch
    import transformers

    model = tiny_task.make_model(folder / "model", sft_steps=30)
    step = folder / "run" / "checkpoints" / "step_000003"
    (step / "policy").mkdir(parents=True)
    engine(rank, model, policy_config()).save_checkpoint(step / "policy")
    write_manifest(step, step=3, fingerprint={}, metrics={})
    network = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    answers = []
    for row in _rows():
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        out = network.generate(ids, do_sample=False, max_new_tokens=5)
        answers.append(tokenizer.decode(out[0, 5:], skip_special_tokens=True))
    return answers


def _rows():
    rows = tiny_task.ReverseDigitsDataset("validation", num_validation=24)
    return [rows[index] for index in range(len(rows))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evals")
    (answers,) = run_ranks(_checkpoint, 1, folder)
    return folder, answers


# Both commands in one process: importing torch is half of the time of either.
COMMANDS = """
import sys
from nemo_rl.launch.__main__ import main

run, out = sys.argv[1:]
layout = ["--tp", "2", "policy.precision=float32"]
options = ["--greedy", "--max-new-tokens", "5", "--output", out]
rows = ["reverse_digits", "data.dataset_kwargs.num_validation=24"]
code = main(["eval", run, *rows, *options, *layout])
assert code == 0, code
sys.exit(main(["diagnose", run, *layout]))
"""


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    folder, _ = made
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(folder / "run"), str(folder / "out")],
        env=environment() | {"COLUMNS": "200"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_a_checkpoint_is_evaluated(made, done):
    folder, answers = made
    assert "pass@1" in done.stdout and "answered 24 of 24 prompts" in done.stderr
    lines = (folder / "out" / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["response"] for row in rows] == answers
    summary = json.loads((folder / "out" / "summary.json").read_text())
    right = sum(
        answer == row["answer"] for answer, row in zip(answers, _rows(), strict=True)
    )
    assert summary["metrics"]["pass@1"]["value"] == pytest.approx(right / 24)
    assert summary["facts"]["step"] == 3
    # The converted weights are gone; what is left is the result.
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"answers.jsonl", "report.md", "summary.json"}


@pytest.mark.slow
def test_sampling_and_training_agree(done):
    assert done.stdout.count(" ok ") == 3 and "TP2 PP1" in done.stdout
