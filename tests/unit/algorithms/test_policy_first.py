"""GRPO(policy, config): the given policy is what is trained, sampled and kept alive.

The policy here has no network; tests/functional trains real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.algorithms import GRPO
from nemo_rl.utils.exceptions import ConfigurationError, RewardError
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tokenizers import character_tokenizer

ROWS = [{"prompt": f"{a} + {a} =", "answer": str(2 * a)} for a in range(1, 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer and the shape of a model: no weights are read."""
    folder = tmp_path_factory.mktemp("model")
    character_tokenizer().save_pretrained(folder)
    models.tiny_config("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "policy": {
            "model_name": str(folder),
            "train_micro_batch_size": 1,
            "max_total_sequence_length": 32,
            "generation": {"max_new_tokens": 4},
        },
        "grpo": {
            "num_prompts_per_step": 2,
            "num_generations_per_prompt": 2,
            "max_num_steps": 2,
            "val_period": 1,
        },
        "checkpointing": {"enabled": False},
        "logger": {
            "log_dir": str(tmp_path / "logs"),
            "console": "off",
            "tensorboard_enabled": False,
        },
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
    }


@pytest.fixture
def policy() -> OneWordPolicy:
    return OneWordPolicy(character_tokenizer()("4")["input_ids"])


class Saving(OneWordPolicy):
    """A policy of one's own with the two methods that checkpoints need."""

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        (path / "answer.txt").write_text("4")

    def load_checkpoint(self, path: Path) -> None:
        self.loaded = (path / "answer.txt").read_text()


def reward(prompt: str, response: str, answer: str) -> float:
    return float(response == answer)


def test_trains_the_given_policy_and_leaves_it_alive(policy, config) -> None:
    result = GRPO(policy, config).train(
        dataset=ROWS, reward_fn=reward, val_dataset=ROWS
    )
    assert (result.steps, result.status) == (2, "completed")
    assert len(policy.updates) == 2
    assert not policy.ended
    batch = policy.updates[0]
    assert batch.size == 4 and torch.isfinite(batch["advantages"]).all()
    # Two prompts of four have a right and an empty completion: 0.25 on the mean.
    assert {row["reward"] for row in result.history} <= {0.0, 0.25}
    assert result.final_validation is not None
    assert result.final_validation["accuracy"] == 0.25


def test_a_reward_that_is_no_number_ends_the_run(policy, config, tmp_path) -> None:
    saved = tmp_path / "saved"
    config["checkpointing"] = {"checkpoint_dir": str(saved), "metric_name": None}
    policy = Saving(policy.answer)

    def not_a_number(prompt: str, response: str) -> float:
        return float("nan")

    with pytest.raises(RewardError, match="(?s)not_a_number returned nan") as caught:
        GRPO(policy, config).train(dataset=ROWS, reward_fn=not_a_number)
    assert caught.value.exit_code == 2
    assert "\n\n" not in str(caught.value).strip()
    assert policy.updates == []
    left = {path.name for path in saved.iterdir()}
    assert not {name for name in left if "step_" in name or "hf" in name}, left


def test_evaluates_without_training_or_touching_the_run(policy, config) -> None:
    algorithm = GRPO(policy, config)
    algorithm.train(dataset=ROWS, reward_fn=reward)
    log = Path(config["logger"]["log_dir"]) / "metrics.jsonl"
    before = log.read_text()
    updates = len(policy.updates)
    metrics = algorithm.evaluate(dataset=ROWS, reward_fn=reward, val_dataset=ROWS)
    assert metrics["accuracy"] == 0.25 and metrics["num_samples"] == 4
    assert policy.greedy[-1] is True
    assert len(policy.updates) == updates and log.read_text() == before


def test_nothing_to_evaluate_on(policy, config) -> None:
    with pytest.raises(ConfigurationError, match="set data.val_dataset_name"):
        GRPO(policy, config).evaluate(dataset=ROWS, reward_fn=reward)


def test_only_policies_are_trained(config) -> None:
    with pytest.raises(ConfigurationError, match="got str. To train a model by name"):
        GRPO("my-model", config)


def test_a_policy_that_cannot_be_saved(policy, config) -> None:
    config["checkpointing"] = {"enabled": True}
    with pytest.raises(ConfigurationError, match="OneWordPolicy defines no save_chec"):
        GRPO(policy, config)
    with pytest.raises(ConfigurationError, match="checkpointing.enabled to false"):
        policy.save_hf(Path("nowhere"))


def test_a_policy_of_ones_own_saves_with_two_methods(config, tmp_path) -> None:
    config["checkpointing"] = {
        "checkpoint_dir": str(tmp_path / "saved"),
        "export_hf": False,
        "metric_name": None,
    }
    first = Saving(character_tokenizer()("4")["input_ids"])
    result = GRPO(first, config).train(dataset=ROWS, reward_fn=reward)
    assert (result.checkpoint_path / "policy" / "answer.txt").is_file()
    again = Saving([5])
    resumed = GRPO(again, config).train(dataset=ROWS, reward_fn=reward)
    assert (resumed.steps, again.loaded, again.updates) == (2, "4", [])
