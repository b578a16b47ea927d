"""Sections of a GRPO recipe between reward and advantage: scale, shape, estimator.

Knows the keys and their bounds; the arithmetic is in ``rewards.py`` and
``advantages.py``.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig


class RewardScalingConfig(BaseConfig):
    """grpo.reward_scaling: map rewards linearly to another range."""

    enabled: bool = False
    """Map rewards from the source to the target range; what is outside is clamped."""
    source_min: float = 0.0
    """Reward that becomes target_min."""
    source_max: float = 1.0
    """Reward that becomes target_max."""
    target_min: float = 0.0
    """Least reward that advantages are made of."""
    target_max: float = 1.0
    """Greatest reward that advantages are made of."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.source_min >= self.source_max:
            raise ValueError(
                f"source_min={self.source_min} is not below "
                f"source_max={self.source_max}: there is no range to map from."
            )
        return self


class RewardShapingConfig(BaseConfig):
    """grpo.reward_shaping: punish responses that are too long."""

    enabled: bool = False
    """Punish length, or truncation where stop_properly_penalty_coef is given."""
    overlong_buffer_length: int = Field(128, ge=1)
    """Tokens before max_response_length over which the punishment grows (DAPO)."""
    overlong_buffer_penalty: float = Field(1.0, ge=0)
    """Punishment of a response of max_response_length tokens."""
    max_response_length: int | None = Field(None, ge=1)
    """Tokens at which the punishment is full; None: max_new_tokens."""
    stop_properly_penalty_coef: float | None = Field(None, ge=0, le=1)
    """Multiply rewards of truncated responses by this, and do nothing else; None:
    punish length."""

    @model_validator(mode="after")
    def _buffer(self) -> Self:
        longest = self.max_response_length
        if not self.enabled or self.stop_properly_penalty_coef is not None:
            return self
        if longest is not None and self.overlong_buffer_length > longest:
            raise ValueError(
                f"overlong_buffer_length={self.overlong_buffer_length} exceeds "
                f"max_response_length={longest}: every response would be punished. "
                f"Lower it below {longest}."
            )
        return self


class AdvEstimatorConfig(BaseConfig):
    """grpo.adv_estimator: how rewards become advantages."""

    name: Literal["grpo", "rloo", "reinforce_plus_plus"] = "grpo"
    """Compare within the prompt as normalize_rewards and use_leave_one_out_baseline
    say (grpo), with the mean of the others alone (rloo), or over the whole batch
    (reinforce_plus_plus)."""
    minus_baseline: bool = True
    """reinforce_plus_plus: subtract the mean of the prompt's rewards first."""
