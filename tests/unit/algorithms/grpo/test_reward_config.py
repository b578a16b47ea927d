"""Bounds of the sections between reward and advantage."""

import pytest

from nemo_rl.algorithms.grpo.reward_config import (
    AdvEstimatorConfig,
    RewardScalingConfig,
    RewardShapingConfig,
)
from nemo_rl.utils.exceptions import ConfigurationError


def test_there_must_be_a_range_to_map_from() -> None:
    with pytest.raises(ConfigurationError, match="source_min=1.0 is not below"):
        RewardScalingConfig(source_min=1.0)
    assert RewardScalingConfig(target_min=1.0, target_max=-1.0).target_max == -1.0


def test_the_buffer_lies_within_the_longest_response() -> None:
    with pytest.raises(ConfigurationError, match="exceeds max_response_length=100"):
        RewardShapingConfig(enabled=True, max_response_length=100)
    fits = {"max_response_length": 100, "overlong_buffer_length": 100}
    assert RewardShapingConfig(enabled=True, **fits).overlong_buffer_penalty == 1.0
    # Neither is read then.
    RewardShapingConfig(max_response_length=100)
    RewardShapingConfig(
        enabled=True, max_response_length=100, stop_properly_penalty_coef=0.0
    )


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_truncated_rewards_are_scaled_down(value) -> None:
    with pytest.raises(ConfigurationError, match="stop_properly_penalty_coef"):
        RewardShapingConfig(stop_properly_penalty_coef=value)


def test_an_unknown_estimator_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean rloo"):
        AdvEstimatorConfig(name="rlo")
