"""A recipe's own data and reward, through the real driver.

The script only hands its YAML to the driver, so one run is a test of both. The model is
a tiny random one: that rewards arrive is tested, not that they are learnt.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nemo_rl.utils.imports import import_object
from tests.fakes import models
from tests.fakes.tokenizers import character_tokenizer
from tests.functional.driver import ROOT, environment

RECIPE = ROOT / "recipes" / "grpo_custom_reward.yaml"
reward = import_object("grpo_custom_reward:reward", search_dir=RECIPE.parent)
rows = import_object("grpo_custom_reward:rows", search_dir=RECIPE.parent)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> list[str]:
    """A tiny model instead of SmolLM2, and two steps."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer()
    models.save(folder, vocab=len(tokenizer), layers=2)
    tokenizer.save_pretrained(folder)
    return [
        f"policy.model_name={folder}",
        "grpo.max_num_steps=2",
        "grpo.val_period=0",
        "checkpointing.enabled=false",
        "cluster.cpu_workers_per_node=1",
        "logger.tensorboard_enabled=false",
    ]


def test_run_as_a_script_of_the_yaml(overrides, tmp_path) -> None:
    """The recorded rewards are those of the recipe's function on its rows."""
    script = [sys.executable, str(RECIPE.with_suffix(".py")), *overrides]
    done = subprocess.run(
        [*script, "--run-dir", str(tmp_path / "run")],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (tmp_path / "run/logs/rollouts.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    trained = [row for row in found if row["split"] == "train"]
    words = {row["prompt"]: row for row in [*rows("train"), *rows("validation")]}
    assert len(trained) == 2 * 4 * 8
    for row in found:
        expected = reward(row["prompt"], row["response"], row=words[row["prompt"]])
        assert row["reward"] == pytest.approx(expected, abs=1e-6)


def test_the_reward_is_graded() -> None:
    row = {"word": "apple"}
    assert reward("", "APPLE", row=row) == 1.0
    assert 0.5 < reward("", " APPLES!", row=row) < 1.0
    assert reward("", "apple", row=row) == reward("", "", row=row) == 0.0


def test_validation_words_are_not_trained_on() -> None:
    train, held_out = rows("train"), rows("validation")
    assert not {row["word"] for row in train} & {row["word"] for row in held_out}
    assert (len(train), len(held_out)) == (32, 8)
