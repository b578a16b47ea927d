"""Advantages against numbers worked out by hand, each estimator."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from nemo_rl.algorithms.grpo.advantages import (
    group_advantages,
    reinforce_plus_plus,
    rloo,
    token_advantages,
)
from nemo_rl.algorithms.grpo.config import GRPOConfig


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


def test_rloo_compares_with_the_others():
    got = rloo(torch.tensor([0.0, 1.0, 5.0, 2.0, 4.0]), torch.tensor([0, 0, 0, 1, 1]))
    assert got.tolist() == pytest.approx([-3.0, -1.5, 4.5, -2.0, 2.0])


def plus_plus(rewards, group, mask, kl=None, **fields):
    mask = torch.tensor(mask)
    fields = {"minus_baseline": False, "sample_mask": torch.ones(len(mask)), **fields}
    return reinforce_plus_plus(
        torch.tensor(rewards),
        torch.tensor(group),
        token_mask=mask,
        kl=torch.zeros_like(mask) if kl is None else torch.tensor(kl),
        **fields,
    )


def test_reinforce_plus_plus_normalises_over_the_tokens_of_all_responses():
    # Tokens: 1, 1, 1 and 5; mean 2, variance (1 + 1 + 1 + 9) / 4 = 3.
    got = plus_plus([1.0, 5.0], [0, 1], [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    expected = torch.tensor([[-1.0, -1.0, -1.0], [3.0, 0.0, 0.0]]) / sqrt(3)
    torch.testing.assert_close(got, expected)


def test_reinforce_plus_plus_with_the_prompts_baseline():
    # Means 2 and 10: -2, 2, -1, 1 over one token each; mean 0, variance 10 / 4.
    mask = [[1.0]] * 4
    got = plus_plus([0.0, 4.0, 9.0, 11.0], [0, 0, 1, 1], mask, minus_baseline=True)
    expected = torch.tensor([[-2.0], [2.0], [-1.0], [1.0]]) / sqrt(2.5)
    torch.testing.assert_close(got, expected)


def test_reinforce_plus_plus_charges_a_token_for_the_divergence_from_it_on():
    kl = [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    got = plus_plus([3.0, 1.0], [0, 1], [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], kl)
    # 3 - 1.5, 3 - 1, 1: mean 1.5, deviations 0, 0.5, -0.5, variance 1 / 6.
    expected = torch.tensor([[0.0, 0.5, 0.0], [-0.5, 0.0, 0.0]]) * sqrt(6)
    torch.testing.assert_close(got, expected)


def test_reinforce_plus_plus_leaves_out_what_the_loss_leaves_out():
    left_out = torch.tensor([1.0, 1.0, 0.0])
    got = plus_plus([0.0, 2.0, 80.0], [0, 1, 2], [[1.0]] * 3, sample_mask=left_out)
    assert got[:2].flatten().tolist() == [-1.0, 1.0]
    assert torch.isfinite(got).all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, -7.3e5])
@pytest.mark.parametrize("minus_baseline", [False, True])
def test_reinforce_plus_plus_of_equal_rewards_is_nothing(value, minus_baseline):
    mask = [[1.0] * 7] * 6
    got = plus_plus(
        [value] * 6, [0, 0, 0, 1, 1, 1], mask, minus_baseline=minus_baseline
    )
    assert (got == 0).all()


def test_reinforce_plus_plus_of_nothing_valid():
    got = plus_plus([1.0, 2.0], [0, 1], [[0.0, 0.0]] * 2)
    assert (got == 0).all()


def estimated(name, kl=None, **fields):
    config = GRPOConfig(adv_estimator=name, **fields)
    return token_advantages(
        torch.tensor([1.0, 0.0]),
        torch.tensor([0, 0]),
        token_mask=torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]]),
        sample_mask=torch.ones(2),
        config=config,
        kl=None if kl is None else torch.tensor(kl),
    )


def test_the_estimator_is_chosen_by_name():
    rloo_tokens = torch.tensor([[0.0, 1.0, 1.0], [0.0, -1.0, 0.0]])
    torch.testing.assert_close(estimated("rloo"), rloo_tokens)
    torch.testing.assert_close(estimated("grpo"), rloo_tokens * sqrt(2))
    plain = {"normalize_rewards": False, "use_leave_one_out_baseline": False}
    torch.testing.assert_close(estimated("grpo", **plain), rloo_tokens / 2)
    # 0.5, 0.5, -0.5 of three tokens: mean 1 / 6, variance 1 / 4 - 1 / 36 = 2 / 9.
    want = torch.tensor([[0.0, 1 / 3, 1 / 3], [0.0, -2 / 3, 0.0]]) / sqrt(2 / 9)
    torch.testing.assert_close(estimated("reinforce_plus_plus"), want)


def test_divergence_in_the_reward_counts_for_whole_responses_in_groups():
    nan = float("nan")
    got = estimated("rloo", [[nan, 0.25, 0.25], [nan, 0.1, nan]])
    # 1 - 0.5 against 0 - 0.1
    want = torch.tensor([[0.0, 0.6, 0.6], [0.0, -0.6, 0.0]])
    torch.testing.assert_close(got, want)
