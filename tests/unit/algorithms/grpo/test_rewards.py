"""Scaled and shaped rewards against numbers worked out by hand."""

import pytest
import torch

from nemo_rl.algorithms.grpo.reward_config import (
    RewardScalingConfig,
    RewardShapingConfig,
)
from nemo_rl.algorithms.grpo.rewards import (
    scale_rewards,
    shape_rewards,
    soft_overlong_punishment,
)


def test_scaling_maps_linearly_and_clamps() -> None:
    config = RewardScalingConfig(
        enabled=True, source_min=1.0, source_max=5.0, target_min=-1.0, target_max=1.0
    )
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, -7.0, 70.0])
    got = scale_rewards(rewards, config)
    assert got.tolist() == [-1.0, -0.5, 0.0, 1.0, -1.0, 1.0]


def test_a_target_may_be_upside_down() -> None:
    config = RewardScalingConfig(enabled=True, target_min=1.0, target_max=0.0)
    assert scale_rewards(torch.tensor([0.0, 0.25]), config).tolist() == [1.0, 0.75]


def test_soft_punishment_of_the_paper() -> None:
    # L_max 20480, L_cache 4096 as in section 3.4: nothing up to 16384, -1 at 20480.
    lengths = torch.tensor([10, 16384, 17408, 18432, 20480, 30000])
    got = soft_overlong_punishment(lengths, longest=20480, buffer=4096)
    assert got.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def shaped(**fields):
    return shape_rewards(
        torch.tensor([1.0, 1.0, -1.0]),
        RewardShapingConfig(**fields),
        lengths=torch.tensor([6, 9, 10]),
        truncated=torch.tensor([False, False, True]),
    ).tolist()


def test_shaping_punishes_length() -> None:
    fields = {"max_response_length": 10, "overlong_buffer_length": 4}
    got = shaped(enabled=True, overlong_buffer_penalty=0.5, **fields)
    assert got == pytest.approx([1.0, 1.0 - 0.5 * 3 / 4, -1.5])


@pytest.mark.parametrize(("coefficient", "last"), [(0.0, 0.0), (0.5, -0.5), (1, -1)])
def test_or_truncation_alone(coefficient, last) -> None:
    got = shaped(
        enabled=True, stop_properly_penalty_coef=coefficient, max_response_length=6
    )
    assert got == [1.0, 1.0, last]


def test_switched_off_changes_nothing() -> None:
    assert shaped(max_response_length=5, stop_properly_penalty_coef=0.0) == [1, 1, -1]
    rewards = torch.tensor([3.0])
    assert scale_rewards(rewards, RewardScalingConfig(target_max=9.0)) is rewards
