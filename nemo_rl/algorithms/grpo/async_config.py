"""Configuration of asynchronous GRPO: grpo.async_grpo."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig


class AsyncGRPOConfig(BaseConfig):
    """grpo.async_grpo: generate the next responses while training on the last."""

    enabled: bool = False
    """Generate while training; needs generation on machines of its own."""
    max_staleness_steps: int = Field(1, ge=0)
    """Updates that may lie between a response's first token and its training step."""
    in_flight_weight_updates: bool = False
    """Give running responses the new weights; false: wait until they have ended."""
    recompute_kv_cache_after_weight_updates: bool = False
    """Compute their cache anew under the new weights."""
    over_sampling: float = Field(1.0, ge=1)
    """Sample this many times the prompts; a step takes those that end first."""
    sort_by_length: bool = True
    """Start the responses first that are expected to be longest."""
    deterministic: bool = False
    """Let no timing decide what is sampled with which weights; slower, for tests."""

    @model_validator(mode="before")
    @classmethod
    def _age_is_staleness(cls, values: Any) -> Any:
        """Read max_trajectory_age_steps, as recipes from elsewhere call it."""
        if not isinstance(values, dict) or "max_trajectory_age_steps" not in values:
            return values
        values = dict(values)
        age = values.pop("max_trajectory_age_steps")
        if values.setdefault("max_staleness_steps", age) != age:
            raise ValueError(
                f"max_trajectory_age_steps={age!r} and max_staleness_steps="
                f"{values['max_staleness_steps']!r} are two names of one number; give "
                "the second alone."
            )
        return values
