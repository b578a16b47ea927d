"""Training batches: what is kept, masks, and rewards on their way to advantages."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from nemo_rl.algorithms.grpo.config import GRPOConfig
from nemo_rl.algorithms.grpo.data import (
    add_advantages,
    build_train_batch,
    mask_sampler_mismatch,
)
from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def rollouts() -> BatchedDataDict:
    """Two prompts with the same tokens, two responses each; the last is cut off."""
    return BatchedDataDict(
        {
            "input_ids": torch.tensor([[5, 6, 7, 2], [5, 6, 8, 2]] * 2),
            "input_lengths": torch.tensor([4, 4, 4, 4]),
            "prompt_lengths": torch.tensor([2, 2, 2, 2]),
            "token_mask": torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 4),
            "generation_logprobs": torch.full((4, 4), -0.5),
            "group": torch.tensor([0, 0, 1, 1]),
            "rewards": torch.tensor([1.0, 0.0, 3.0, 1.0]),
            "truncated": torch.tensor([False, False, False, True]),
            "sample_mask": torch.tensor([1.0, 0.0, 1.0, 1.0]),
            "response": ["a", "b", "c", "d"],
        }
    )


def grpo_config(**fields) -> GRPOConfig:
    return GRPOConfig(**{"normalize_rewards": False, **fields})


def train_batch(config: GRPOConfig, loss=None, **columns):
    """The batch with advantages, and the metrics of how they came about."""
    source = rollouts()
    batch = build_train_batch(source, config)
    batch |= columns
    metrics = add_advantages(batch, source, config, loss or ClippedPGLossConfig())
    return batch, metrics


def test_train_batch_puts_advantages_on_response_tokens():
    batch, metrics = train_batch(grpo_config(use_leave_one_out_baseline=False))
    # Equal prompts in two groups stay two groups: means 0.5 and 2, not 1.25.
    expected = torch.tensor([0.5, -0.5, 1.0, -1.0])
    torch.testing.assert_close(
        batch["advantages"], expected[:, None] * torch.tensor([0.0, 0, 1, 1])
    )
    assert batch["sample_mask"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert sorted(batch) == [
        "advantages",
        "generation_logprobs",
        "input_ids",
        "input_lengths",
        "sample_mask",
        "token_mask",
    ]
    assert metrics == {}


def test_train_batch_follows_the_configured_baseline_and_scale():
    batch, _ = train_batch(GRPOConfig())
    expected = torch.tensor([sqrt(2), -sqrt(2)] * 2)
    torch.testing.assert_close(batch["advantages"][:, 2], expected)


def test_overlong_filtering_leaves_truncated_responses_out():
    config = grpo_config(overlong_filtering=True, use_leave_one_out_baseline=False)
    source = rollouts()
    batch = build_train_batch(source, config)
    assert batch["sample_mask"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert source["sample_mask"].tolist() == [1.0, 0.0, 1.0, 1.0]
    # The truncated response still counts in its group's baseline.
    batch, _ = train_batch(config)
    assert batch["advantages"][2, 2] == 1.0


def test_rewards_are_scaled_then_shaped_before_they_are_compared():
    config = grpo_config(
        use_leave_one_out_baseline=False,
        reward_scaling={"enabled": True, "source_max": 2.0, "target_max": 10.0},
        reward_shaping={"enabled": True, "stop_properly_penalty_coef": 0.5},
    )
    batch, metrics = train_batch(config)
    # 1, 0, 3, 1 -> 5, 0, 10 (clamped), 5 -> the truncated one 2.5
    expected = torch.tensor([2.5, -2.5, 3.75, -3.75])
    torch.testing.assert_close(batch["advantages"][:, 3], expected)
    assert metrics == {"shaped_reward": pytest.approx(17.5 / 4)}


def test_length_is_that_of_the_response():
    shaping = {
        "enabled": True,
        "max_response_length": 3,
        "overlong_buffer_length": 2,
        "overlong_buffer_penalty": 4.0,
    }
    _, metrics = train_batch(grpo_config(reward_shaping=shaping))
    # 2 tokens are one beyond 3 - 2: half of the punishment, for every response.
    assert metrics["shaped_reward"] == pytest.approx(5 / 4 - 2.0)


def test_divergence_in_the_reward_is_that_of_the_policy_before_the_update():
    prev = torch.tensor([[9.0, 9.0, -1.0, -1.0]] * 4)
    gap = torch.tensor([[9.0, 9.0, 0.1, 0.2]] + [[9.0, 9.0, 0.0, 0.0]] * 3)
    loss = ClippedPGLossConfig(
        use_kl_in_reward=True,
        reference_policy_kl_type="k1",
        reference_policy_kl_penalty=2.0,
    )
    batch, metrics = train_batch(
        grpo_config(use_leave_one_out_baseline=False),
        loss,
        prev_logprobs=prev,
        reference_policy_logprobs=prev - gap,
    )
    # The first reward loses 2 * (0.1 + 0.2); its prompt's mean is then 0.2.
    expected = torch.tensor([0.2, -0.2, 1.0, -1.0])
    torch.testing.assert_close(batch["advantages"][:, 2], expected)
    assert metrics == {"kl_in_reward": pytest.approx(0.3 / 8)}


def scored(differences, mask=None) -> BatchedDataDict:
    difference = torch.tensor(differences)
    mask = torch.ones_like(difference) if mask is None else torch.tensor(mask)
    return BatchedDataDict(
        {
            "token_mask": mask,
            "generation_logprobs": torch.full_like(difference, -1.0),
            "prev_logprobs": difference - 1.0,
            "sample_mask": torch.ones(len(difference)),
        }
    )


def test_mismatch_masks_responses_above_the_threshold():
    # Means of exp|difference|: 1, (e + 1) / 2 = 1.86, e^2 = 7.4 on the valid token.
    batch = scored(
        [[0.0, 0.0], [-1.0, 0.0], [2.0, 9.0]],
        [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]],
    )
    kept, dropped = mask_sampler_mismatch(batch, 2.0)
    assert kept["sample_mask"].tolist() == [1.0, 1.0, 0.0]
    assert dropped == pytest.approx(1 / 3)
    kept, dropped = mask_sampler_mismatch(batch, 1.8)
    assert kept["sample_mask"].tolist() == [1.0, 0.0, 0.0]
    assert batch["sample_mask"].tolist() == [1.0, 1.0, 1.0]


def test_mismatch_without_threshold_keeps_everything():
    batch = scored([[50.0, 50.0]])
    kept, dropped = mask_sampler_mismatch(batch, None)
    assert kept is batch
    assert dropped == 0.0


def test_mismatch_that_overflows_or_is_not_a_number_is_left_out():
    batch = scored([[200.0, 0.0], [float("nan"), 0.0], [0.0, 0.0]])
    kept, _ = mask_sampler_mismatch(batch, 2.0)
    assert kept["sample_mask"].tolist() == [0.0, 0.0, 1.0]


def test_mismatch_of_an_empty_response_is_none():
    kept, dropped = mask_sampler_mismatch(scored([[3.0]], [[0.0]]), 1.5)
    assert kept["sample_mask"].tolist() == [1.0]
    assert dropped == 0.0
