"""A tiny model learns under SFT, GRPO and DPO through Ray, on Megatron, TP2 and PP2.

Proves that data, loss, gradient, update and generation fit together. Says nothing
about speed or about large models.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nemo_rl.converters.cli.parser import main
from tests.functional import tiny_task
from tests.functional.driver import succeed, write_recipe
from tests.functional.ranks import run_ranks


def _random(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=0))


def _sampled(_, folder):
    return tiny_task.sampled_accuracy(folder)


def metrics(run: Path, name: str) -> list[float]:
    """The values of a metric over the steps of a run."""
    lines = (run / "logs" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[name] for row in rows if name in row]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """The run that taught a random model under SFT, TP2."""
    folder = tmp_path_factory.mktemp("sft")
    (model,) = run_ranks(_random, 1, folder / "model")
    succeed(write_recipe(folder, tiny_task.sft_recipe(Path(model))), folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_fine_tuning_lowers_the_loss(tuned):
    loss, held_out = metrics(tuned, "train/loss"), metrics(tuned, "val/loss")
    print(f"loss {loss[0]:.3f} -> {loss[-1]:.3f}, held out {held_out}")
    assert loss[0] > 4.0
    assert loss[-1] < 0.6
    assert held_out[-1] < 0.6
    assert metrics(tuned, "val/num_samples") == [256.0, 256.0]


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)], ids=["tp2", "pp2"])
def test_learns_to_reverse_digits(tuned, tmp_path, tp, pp):
    warm = tuned / "checkpoints" / "hf"
    (before,) = run_ranks(_sampled, 1, warm)
    recipe = write_recipe(tmp_path, tiny_task.recipe(warm, tp=tp, pp=pp))
    succeed(recipe, tmp_path / "run")
    (after,) = run_ranks(_sampled, 1, tmp_path / "run" / "checkpoints" / "hf")
    print(f"sampled accuracy on held-out prompts: {before:.3f} -> {after:.3f}")
    assert before < 0.40
    assert after > 0.75


@pytest.mark.slow
def test_preferences_widen_the_margin(tuned, tmp_path):
    warm = tuned / "checkpoints" / "hf"
    recipe = tiny_task.pairs_recipe("dpo", warm, tmp_path / "pairs.jsonl")
    succeed(write_recipe(tmp_path, recipe), tmp_path / "run")
    loss = metrics(tmp_path / "run", "train/loss")
    margin = metrics(tmp_path / "run", "train/rewards_margin")
    print(f"loss {loss[0]:.7f} -> {loss[-1]:.3f}, margin 0 -> {margin[-1]:.3f}")
    assert loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert margin[0] == 0
    assert margin[-1] > 0.5
    assert metrics(tmp_path / "run", "val/accuracy")[-1] > 0.8


@pytest.mark.slow
def test_a_pupil_learns_from_its_teacher(tuned, tmp_path):
    (pupil,) = run_ranks(_half_taught, 1, tmp_path / "pupil")
    teacher = tuned / "checkpoints" / "hf"
    recipe = tiny_task.distillation_recipe(Path(pupil), teacher)
    succeed(write_recipe(tmp_path, recipe), tmp_path / "run")
    loss = metrics(tmp_path / "run", "train/loss")
    accuracy = metrics(tmp_path / "run", "val/accuracy")
    print(f"divergence {loss[0]:.3f} -> {loss[-1]:.3f}, accuracy {accuracy}")
    assert loss[-1] < 0.5 < loss[0]
    assert accuracy[0] < 0.1 < 0.2 < accuracy[-1]
    assert metrics(tmp_path / "run", "train/teacher_topk_probability")[0] == (
        pytest.approx(1.0, abs=1e-5)
    )


def _half_taught(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=40))


def _hf_accuracy(_, folder, pairs):
    return tiny_task.pair_scores(folder, pairs)


@pytest.mark.slow
def test_a_reward_model_tells_answers_apart(tuned, tmp_path):
    warm = tuned / "checkpoints" / "hf"
    recipe = tiny_task.pairs_recipe("rm", warm, tmp_path / "pairs.jsonl")
    succeed(write_recipe(tmp_path, recipe), tmp_path / "run")
    run = tmp_path / "run"
    loss, accuracy = metrics(run, "train/loss"), metrics(run, "val/accuracy")
    print(f"loss {loss[0]:.4f} -> {loss[-1]:.4f}, accuracy {accuracy}")
    assert loss[-1] < 0.3 < 0.5 < loss[0]
    assert accuracy[-1] > 0.8
    folder, pairs = run / "checkpoints" / "hf", tmp_path / "held_out.jsonl"
    ((theirs, margin),) = run_ranks(_hf_accuracy, 1, folder, pairs)
    assert theirs == pytest.approx(accuracy[-1])
    assert margin == pytest.approx(metrics(run, "val/rewards_margin")[-1], rel=1e-4)
    checkpoint, converted = run / "checkpoints" / "step_000020", tmp_path / "converted"
    assert main(["megatron-to-hf", str(checkpoint), str(converted)]) == 0
    assert main(["verify", str(checkpoint), str(folder)]) == 0
    assert main(["verify", str(checkpoint), str(converted)]) == 0
    both = [(place / "config.json").read_text() for place in (converted, folder)]
    assert both[0] == both[1]
