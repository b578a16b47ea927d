"""Rewards as the environment gave them to rewards that advantages are made of.

Pure functions of [B] tensors; knows no groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.reward_config import (
    RewardScalingConfig,
    RewardShapingConfig,
)


def scale_rewards(rewards: Tensor, config: RewardScalingConfig) -> Tensor:
    """Map the source range linearly to the target range; clamp what is outside.

    Args:
        rewards: [B] fp32.
        config: the ranges; rewards are returned as they are unless enabled.
    """
    if not config.enabled:
        return rewards
    inside = rewards.clamp(config.source_min, config.source_max)
    share = (inside - config.source_min) / (config.source_max - config.source_min)
    return config.target_min + share * (config.target_max - config.target_min)


def shape_rewards(
    rewards: Tensor,
    config: RewardShapingConfig,
    *,
    lengths: Tensor,
    truncated: Tensor,
) -> Tensor:
    """Punish responses that are too long or did not come to their end.

    Args:
        rewards: [B] fp32, scaled.
        config: which punishment; rewards are returned as they are unless enabled.
        lengths: [B] tokens of each response.
        truncated: [B] bool, whether the length limit ended the response.
    """
    if not config.enabled:
        return rewards
    coefficient = config.stop_properly_penalty_coef
    if coefficient is not None:
        return torch.where(truncated, rewards * coefficient, rewards)
    assert config.max_response_length is not None, "settled with the whole recipe"
    return rewards + config.overlong_buffer_penalty * soft_overlong_punishment(
        lengths,
        longest=config.max_response_length,
        buffer=config.overlong_buffer_length,
    )


def soft_overlong_punishment(lengths: Tensor, *, longest: int, buffer: int) -> Tensor:
    """0 up to ``longest - buffer`` tokens, then falling linearly to -1 at ``longest``.

    DAPO (arXiv:2503.14476, equation 13).

    Args:
        lengths: [B] tokens of each response.
        longest: L_max.
        buffer: L_cache, at least 1.
    """
    return ((longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)
