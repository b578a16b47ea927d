"""Advantages and training batches against numbers worked out by hand."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from nemo_rl.algorithms.grpo.config import GRPOConfig
from nemo_rl.algorithms.grpo.data import (
    build_train_batch,
    group_advantages,
    mask_sampler_mismatch,
)
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def advantages(rewards, group, *, leave_one_out=False, normalize=False):
    return group_advantages(
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(group),
        leave_one_out=leave_one_out,
        normalize=normalize,
    ).tolist()


def test_advantage_over_the_group_mean():
    # Means 1 and 4.
    got = advantages([0.0, 1.0, 2.0, 3.0, 5.0], [0, 0, 0, 1, 1])
    assert got == [-1.0, 0.0, 1.0, -1.0, 1.0]


def test_advantage_over_the_mean_of_the_others():
    # Others of 0: (1 + 5) / 2 = 3; of 1: 2.5; of 5: 0.5.
    got = advantages([0.0, 1.0, 5.0], [0, 0, 0], leave_one_out=True)
    assert got == pytest.approx([-3.0, -1.5, 4.5])


def test_normalised_advantage_divides_by_the_unbiased_deviation():
    # Mean 2, deviations -2, -1, 3; variance (4 + 1 + 9) / 2 = 7.
    got = advantages([0.0, 1.0, 5.0], [0, 0, 0], normalize=True)
    assert got == pytest.approx([-2 / sqrt(7), -1 / sqrt(7), 3 / sqrt(7)])
    # Leave-one-out keeps the deviation of the whole group.
    both = advantages([0.0, 1.0, 5.0], [0, 0, 0], leave_one_out=True, normalize=True)
    assert both == pytest.approx([-3 / sqrt(7), -1.5 / sqrt(7), 4.5 / sqrt(7)])


def test_normalised_advantage_of_two_members():
    # Deviation of (0, 1) is sqrt(1/2); the baseline of one is the other.
    got = advantages([0.0, 1.0], [0, 0], normalize=True)
    assert got == pytest.approx([-0.5 * sqrt(2), 0.5 * sqrt(2)])
    both = advantages([0.0, 1.0], [0, 0], leave_one_out=True, normalize=True)
    assert both == pytest.approx([-sqrt(2), sqrt(2)])


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_equal_rewards_teach_nothing(leave_one_out, normalize):
    got = advantages(
        [1.0] * 4 + [0.0] * 4,
        [0] * 4 + [1] * 4,
        leave_one_out=leave_one_out,
        normalize=normalize,
    )
    assert got == [0.0] * 8


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3e5, 1e-9])
@pytest.mark.parametrize("size", [3, 7, 16])
def test_equal_rewards_leave_no_rounding_error_to_normalise(value, size):
    kwargs = {"leave_one_out": True, "normalize": True}
    assert advantages([value] * size, [0] * size, **kwargs) == [0.0] * size


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_normalised_advantages_know_no_unit(scale):
    rewards = [0.0 * scale, 1.0 * scale, 5.0 * scale]
    got = advantages(rewards, [0, 0, 0], normalize=True)
    assert got == pytest.approx([-2 / sqrt(7), -1 / sqrt(7), 3 / sqrt(7)])


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_group_of_one_has_no_advantage(leave_one_out, normalize):
    got = advantages(
        [3.0, 0.0, 2.0], [7, 1, 1], leave_one_out=leave_one_out, normalize=normalize
    )
    assert got[0] == 0.0
    assert got[1] < 0 < got[2]


def test_groups_may_be_interleaved_and_have_any_number():
    together = advantages([0.0, 4.0, 1.0, 2.0], [0, 0, 1, 1], normalize=True)
    mixed = advantages([1.0, 0.0, 2.0, 4.0], [9, 5, 9, 5], normalize=True)
    assert [mixed[i] for i in (1, 3, 0, 2)] == together


def test_groups_sum_to_zero():
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(12, generator=generator)
    group = torch.arange(3).repeat_interleave(4)
    for leave_one_out in (False, True):
        got = group_advantages(
            rewards, group, leave_one_out=leave_one_out, normalize=True
        )
        assert got.view(3, 4).sum(1).abs().max() < 1e-5


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


def test_train_batch_puts_advantages_on_response_tokens():
    batch = build_train_batch(rollouts(), grpo_config(use_leave_one_out_baseline=False))
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


def test_train_batch_follows_the_configured_baseline_and_scale():
    batch = build_train_batch(rollouts(), GRPOConfig())
    expected = torch.tensor([sqrt(2), -sqrt(2)] * 2)
    torch.testing.assert_close(batch["advantages"][:, 2], expected)


def test_overlong_filtering_leaves_truncated_responses_out():
    config = grpo_config(overlong_filtering=True, use_leave_one_out_baseline=False)
    source = rollouts()
    batch = build_train_batch(source, config)
    assert batch["sample_mask"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert source["sample_mask"].tolist() == [1.0, 0.0, 1.0, 1.0]
    # The truncated response still counts in its group's baseline.
    assert batch["advantages"][2, 2] == 1.0


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
