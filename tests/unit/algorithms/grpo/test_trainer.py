"""What the trainer adds around a step: more batches, their seeds, and a resume.

A policy without a network answers; real ones are in tests/functional.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.algorithms.grpo.trainer import GRPOTrainer
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import TrainingError
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tokenizers import character_tokenizer

ROWS = [{"prompt": f"{n:02d}"} for n in range(24)]


class SavedPolicy(OneWordPolicy):
    """Also remembers sampling seeds, and can be saved: it has no state."""

    def __init__(self) -> None:
        super().__init__([7])
        self.seeds: list[int] = []

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        self.seeds += data["sampling_seed"].tolist()
        return super().generate(data, greedy)

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        (path / "saved").touch()

    def load_checkpoint(self, path: Path) -> None:
        assert (path / "saved").exists()


def reward(prompt: str, response: str) -> float:
    """Responses to every third prompt differ; the others are all equal."""
    return float(len(response)) if int(prompt) % 3 == 0 else 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    character_tokenizer().save_pretrained(folder)
    models.tiny_config("llama").save_pretrained(folder)
    return folder


def fit(folder: Path, out: Path, steps: int, **grpo: Any):
    """The policy and the result of a run with dynamic sampling."""
    policy = SavedPolicy()
    trainer = GRPOTrainer(
        {
            "policy": {"model_name": str(folder), "train_micro_batch_size": 2},
            "grpo": {
                "num_prompts_per_step": 3,
                "num_generations_per_prompt": 2,
                "use_dynamic_sampling": True,
                "max_num_steps": steps,
                "max_num_epochs": 9,
                **grpo,
            },
            "loss_fn": {"reference_policy_kl_penalty": 0.0},
            "logger": {
                "console": "off",
                "tensorboard_enabled": False,
                "log_dir": str(out / "logs"),
            },
            "checkpointing": {
                "checkpoint_dir": str(out / "checkpoints"),
                "metric_name": None,
                "export_hf": False,
            },
            "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
        },
        policy=policy,
    )
    return policy, trainer.fit(dataset=ROWS, reward_fn=reward)


def test_every_update_has_its_prompts_and_all_of_them_teach(folder, tmp_path) -> None:
    policy, result = fit(folder, tmp_path, 4)
    for batch in policy.updates:
        assert batch.size == 6
        assert (batch["advantages"].abs().sum(-1) > 0).all()
    assert result.metrics["num_completions"] == 6
    assert result.metrics["dynamic_sampling_batches"] > 1
    # No two rows that were sampled share a seed, in one step or over steps.
    assert len(set(policy.seeds)) == len(policy.seeds) > 4 * 6


def test_resuming_goes_on_with_the_prompts_that_come_next(folder, tmp_path) -> None:
    straight, _ = fit(folder, tmp_path / "one", 6)
    first, _ = fit(folder, tmp_path / "two", 2)
    second, result = fit(folder, tmp_path / "two", 6)
    assert (result.steps, len(second.updates)) == (6, 4)
    assert first.seeds + second.seeds == straight.seeds
    for one, two in zip(straight.updates, first.updates + second.updates, strict=True):
        assert torch.equal(one["input_ids"], two["input_ids"])
        assert torch.equal(one["advantages"], two["advantages"])


def test_every_completion_is_recorded_also_of_prompts_that_were_dropped(
    folder, tmp_path
) -> None:
    policy, result = fit(folder, tmp_path, 1, num_prompts_per_step=6)
    rows = [json.loads(line) for line in result.rollouts_path.read_text().splitlines()]
    assert len(rows) == len(policy.seeds) > 12
    assert len(rows) % 12 == 0
    # A prompt of a later batch is another group than one of the first.
    assert [row["group"] for row in rows] == [n // 2 for n in range(len(rows))]


def test_a_step_that_finds_too_few_prompts_ends_the_run(folder, tmp_path) -> None:
    with pytest.raises(TrainingError, match=r"of 3 prompts .* in 1 batches of 3"):
        fit(folder, tmp_path, 1, dynamic_sampling_max_gen_batches=1)
