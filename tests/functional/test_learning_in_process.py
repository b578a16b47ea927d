"""DPO, a reward model and distillation on real Megatron, in one process without Ray.

The same through Ray under tensor and pipeline parallelism is slow: test_learning.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.functional import tiny_task
from tests.functional.ranks import run_ranks


def _run(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a policy of this process; histories and the exported folder."""
    from nemo_rl.api.functional import to_config, trainer_class
    from nemo_rl.distributed.local import LocalCluster
    from nemo_rl.models.policy import Policy

    recipe["policy"]["megatron_cfg"] = {}
    recipe["cluster"]["cpu_workers_per_node"] = 1
    recipe["checkpointing"]["checkpoint_dir"] = str(folder / "checkpoints")
    recipe["logger"] |= {"log_dir": str(folder / "logs"), "console": "off"}
    config = to_config(recipe, recipe["algorithm"])
    teacher = recipe.get("teacher", {}).get("model_name")
    policy = Policy(LocalCluster(), config.policy, teacher=teacher)
    try:
        trainer = trainer_class(recipe["algorithm"])(config, policy=policy)
        result = trainer.fit()
    finally:
        policy.shutdown()
    return {
        "train": result.history,
        "val": result.validation_history,
        "hf": str(result.hf_export_path),
    }


def _all(_, folder: Path) -> dict[str, Any]:
    tuned = tiny_task.make_model(folder / "tuned", sft_steps=80)
    weak = tiny_task.make_model(folder / "weak", sft_steps=40)
    found = {
        name: _run(
            tiny_task.pairs_recipe(name, tuned, folder / name / "pairs.jsonl"),
            folder / n,
        )
        for name, n in (("dpo", "1"), ("rm", "2"))
    }
    recipe = tiny_task.distillation_recipe(weak, tuned)
    found["distillation"] = _run(recipe, folder / "3")
    found["rm"]["theirs"] = tiny_task.pair_scores(
        Path(found["rm"]["hf"]), folder / "rm" / "held_out.jsonl"
    )
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Any]:
    """What every algorithm's run returned."""
    (found,) = run_ranks(_all, 1, tmp_path_factory.mktemp("runs"), timeout_s=250)
    return found


def values(run: dict[str, Any], split: str, name: str) -> list[float]:
    """A metric over the steps."""
    return [row[name] for row in run[split] if name in row]


def test_preferences_widen_the_margin(runs):
    run = runs["dpo"]
    loss, margin = values(run, "train", "loss"), values(run, "train", "rewards_margin")
    assert loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert margin[0] == 0
    assert margin[-1] > 0.5
    assert values(run, "val", "accuracy")[-1] > 0.8


def test_a_reward_model_scores_as_transformers_does(runs):
    run = runs["rm"]
    loss, accuracy = values(run, "train", "loss"), values(run, "val", "accuracy")
    assert loss[-1] < 0.3 < 0.5 < loss[0]
    assert accuracy[-1] > 0.8
    theirs, margin = run["theirs"]
    assert theirs == pytest.approx(accuracy[-1])
    assert margin == pytest.approx(values(run, "val", "rewards_margin")[-1], rel=1e-4)


def test_a_pupil_learns_from_its_teacher(runs):
    run = runs["distillation"]
    loss, accuracy = values(run, "train", "loss"), values(run, "val", "accuracy")
    print(f"divergence {loss[0]:.3f} -> {loss[-1]:.3f}, accuracy {accuracy}")
    assert loss[-1] < 0.5 < loss[0]
    assert accuracy[0] < 0.1 < 0.2 < accuracy[-1]
    covered = values(run, "train", "teacher_topk_probability")
    assert covered[0] == pytest.approx(1.0, abs=1e-5)
