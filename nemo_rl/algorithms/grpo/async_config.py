"""Configuration of asynchronous GRPO: grpo.async_grpo."""

from __future__ import annotations

from typing import Any, Self

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

    @property
    def samples_ahead(self) -> bool:
        """Whether anything is sampled before the step that trains on it asks."""
        return self.enabled and (self.max_staleness_steps > 0 or self.over_sampling > 1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.deterministic and self.over_sampling > 1:
            raise ValueError(
                f"over_sampling={self.over_sampling:g} takes the responses that end "
                "first, which deterministic=true leaves to no timing: set one of the "
                "two back (over_sampling to 1, or deterministic to false)."
            )
        if self.deterministic and self.in_flight_weight_updates:
            raise ValueError(
                "in_flight_weight_updates=true lets the timing decide which tokens new "
                "weights sample, which deterministic=true forbids: set one of the two "
                "to false."
            )
        if self.recompute_kv_cache_after_weight_updates and not (
            self.in_flight_weight_updates
        ):
            raise ValueError(
                "recompute_kv_cache_after_weight_updates=true has no running responses "
                "to act on without in_flight_weight_updates: set that to true, or "
                "leave it out."
            )
        return self

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


def check_async(config: Any) -> None:
    """Check grpo.async_grpo against the other sections of a recipe.

    Args:
        config: a ``GRPOMasterConfig``.

    Raises:
        ValueError: what is sampled ahead could not be, or could not be learned from.
    """
    grpo, section = config.grpo, config.grpo.async_grpo
    if not section.samples_ahead:
        return
    generation = config.policy.generation
    if generation.colocated.enabled:
        raise ValueError(
            "grpo.async_grpo generates while training, but generation shares the "
            "machines of training (policy.generation.colocated.enabled=true): set that "
            "to false and policy.generation.backend to 'vllm', or "
            "grpo.async_grpo.enabled to false."
        )
    if generation.backend not in (None, "vllm"):
        raise ValueError(
            "grpo.async_grpo generates while training, but "
            f"policy.generation.backend={generation.backend!r} runs in the processes "
            "that train: set it to 'vllm', or grpo.async_grpo.enabled to false."
        )
    if grpo.use_dynamic_sampling:
        raise ValueError(
            "grpo.use_dynamic_sampling=true draws as many prompts as a step turns out "
            "to need, and grpo.async_grpo draws those of the next steps before that is "
            "known: set one of the two to false."
        )
    if section.over_sampling > 1 and grpo.max_rollout_turns > 1:
        raise ValueError(
            f"grpo.async_grpo.over_sampling={section.over_sampling:g} goes on with "
            "responses that were interrupted, not with conversations "
            f"(grpo.max_rollout_turns={grpo.max_rollout_turns}): set one of the two "
            "to 1."
        )
    stale = section.max_staleness_steps > 0
    if stale and not config.loss_fn.use_importance_sampling_correction:
        raise ValueError(
            f"grpo.async_grpo.max_staleness_steps={section.max_staleness_steps} trains "
            "on responses of earlier weights: set "
            "loss_fn.use_importance_sampling_correction to true, which weights them "
            "by their probability under the present ones, and "
            "loss_fn.truncated_importance_sampling_ratio to a bound such as 2."
        )
