"""Dynamic sampling: which prompts are kept, when it ends, what it says."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.algorithms.grpo.config import GRPOConfig
from nemo_rl.algorithms.grpo.dynamic_sampling import (
    differing_rewards,
    sample_until_full,
)
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import TrainingError


def config(**fields) -> GRPOConfig:
    return GRPOConfig(
        **{
            "use_dynamic_sampling": True,
            "num_prompts_per_step": 3,
            "num_generations_per_prompt": 2,
            "normalize_rewards": False,
            **fields,
        }
    )


def batches(*rewards):
    """A generator of rollouts: one list of rewards per batch, two to a prompt."""
    asked = []

    def generate(number):
        asked.append(number)
        values = torch.tensor(rewards[number])
        prompts = len(values) // 2
        rollouts = BatchedDataDict(
            {
                "rewards": values,
                "group": torch.arange(prompts).repeat_interleave(2) + number * prompts,
                "input_ids": torch.full((len(values), 2 + number), number),
                "response": [f"{number}.{row}" for row in range(len(values))],
            }
        )
        metrics = {
            "reward": float(values.mean()),
            "reward_min": float(values.min()),
            "reward_max": float(values.max()),
            "num_completions": float(len(values)),
        }
        return rollouts, metrics

    return generate, asked


def test_differing_rewards_are_those_of_a_prompts_own_responses():
    # Groups 7 and 2 interleaved; 7 is all 0.1, 2 is not.
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.0])
    group = torch.tensor([7, 2, 7, 2])
    assert differing_rewards(rewards, group).tolist() == [False, True, False, True]
    assert not differing_rewards(rewards[:3], torch.tensor([0, 0, 0])).any()
    assert not differing_rewards(rewards, torch.arange(4)).any()


def test_prompts_are_kept_over_batches_until_there_are_enough():
    generate, asked = batches(
        [0.0, 0.0, 1.0, 0.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.5, 1.0, 0.0, 2.0],
    )
    rollouts, metrics = sample_until_full(generate, config())
    assert asked == [0, 1, 2]
    assert rollouts["rewards"].tolist() == [1.0, 0.0, 0.0, 1.0, 0.5, 1.0]
    assert rollouts["response"] == ["0.2", "0.3", "2.0", "2.1", "2.2", "2.3"]
    # Two prompts of different batches are never one group.
    assert rollouts["group"].tolist() == [1, 1, 6, 6, 7, 7]
    # Rows of a batch with shorter prompts are padded.
    assert rollouts["input_ids"][0].tolist() == [0, 0, 0, 0]
    assert metrics == {
        "reward": pytest.approx((3 / 6 + 0 + 4.5 / 6) / 3),
        "reward_min": 0.0,
        "reward_max": 2.0,
        "num_completions": 6.0,
        "dynamic_sampling_batches": 3.0,
        "dynamic_sampling_kept_fraction": pytest.approx(8 / 18),
        "dynamic_sampling_surplus_prompts": 1.0,
    }


def test_one_batch_that_is_enough_is_all_that_is_sampled():
    generate, asked = batches([0.0, 1.0] * 3)
    rollouts, metrics = sample_until_full(generate, config())
    assert (asked, rollouts.size) == ([0], 6)
    assert metrics["dynamic_sampling_kept_fraction"] == 1.0


def test_after_the_last_batch_it_says_what_was_seen():
    generate, asked = batches([0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.5, 0.5])
    fields = {"dynamic_sampling_max_gen_batches": 2, "batch_multiplier": 1.34}
    with pytest.raises(TrainingError) as error:
        sample_until_full(generate, config(**fields))
    assert asked == [0, 1]
    text = str(error.value)
    assert "found 1 of 3 prompts" in text
    assert "in 2 batches of 4 prompts" in text
    assert "Rewards of the 4 prompts: lowest 0, mean 0.3125, highest 1." in text
    assert "grpo.use_dynamic_sampling to false" in text


def test_rewards_are_compared_scaled_and_without_a_punishment_of_length():
    # 3 and 5 are both clamped to 1: nothing to learn from.
    generate, _ = batches([3.0, 5.0, 0.0, 0.5, 0.0, 1.0, 0.2, 0.1])
    fields = {
        "reward_scaling": {"enabled": True},
        "reward_shaping": {"enabled": True, "max_response_length": 200},
    }
    rollouts, _ = sample_until_full(generate, config(**fields))
    assert rollouts["group"].unique().tolist() == [1, 2, 3]
