"""Configuration of GRPO: the grpo and loss_fn sections and the whole recipe.

GRPO: Shao et al. 2024, "DeepSeekMath" (arXiv:2402.03300).
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from nemo_rl.algorithms.grpo.async_config import AsyncGRPOConfig, check_async
from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.reward_config import (
    AdvEstimatorConfig,
    RewardScalingConfig,
    RewardShapingConfig,
)
from nemo_rl.config.loop import LoopConfig
from nemo_rl.config.master import MasterConfig, batch_size_follows
from nemo_rl.config.validation import validate_batches, validate_master

_STEP = ("num_prompts_per_step", "num_generations_per_prompt")
"""Their product is what a step trains on."""


class GRPOConfig(LoopConfig):
    """The grpo section: how much is sampled, how rewards become advantages."""

    num_prompts_per_step: int = Field(32, ge=1)
    """Prompts per step (P)."""
    num_generations_per_prompt: int = Field(16, ge=1)
    """Responses per prompt (G); advantages compare them with one another."""
    normalize_rewards: bool = True
    """Divide advantages by the standard deviation of the prompt's rewards."""
    use_leave_one_out_baseline: bool = True
    """Compare a response with the mean of the others, not of all."""
    adv_estimator: AdvEstimatorConfig = Field(default_factory=AdvEstimatorConfig)
    """How rewards become advantages; a name alone will do."""
    max_val_samples: int = Field(256, ge=1)
    """Prompts per validation."""
    val_batch_size: int = Field(256, ge=1)
    """Prompts sampled at once in a validation."""
    max_rollout_turns: int = Field(1, ge=1)
    """Responses per conversation, with what the environment says between them."""
    overlong_filtering: bool = False
    """Leave responses that ran into max_new_tokens out of the loss."""
    use_dynamic_sampling: bool = False
    """Sample until num_prompts_per_step prompts have differing rewards (DAPO)."""
    dynamic_sampling_max_gen_batches: int = Field(10, ge=1)
    """Batches after which a step gives up, with use_dynamic_sampling."""
    batch_multiplier: float = Field(1, ge=1)
    """Prompts of such a batch, in units of num_prompts_per_step."""
    seq_logprob_error_threshold: float | None = Field(None, gt=0)
    """Leave out responses whose mean exp|log-prob difference| exceeds this."""
    calculate_advantages_on_gpu: bool = False
    """Accepted; advantages are computed in the driver."""
    reward_scaling: RewardScalingConfig = Field(default_factory=RewardScalingConfig)
    """Map rewards linearly to another range."""
    reward_shaping: RewardShapingConfig = Field(default_factory=RewardShapingConfig)
    """Punish responses that are too long, after scaling."""
    async_grpo: AsyncGRPOConfig = Field(default_factory=AsyncGRPOConfig)
    """Generate while training."""

    @property
    def prompts_per_batch(self) -> int:
        """Prompts that are sampled at once."""
        return round(self.num_prompts_per_step * self.batch_multiplier)

    @model_validator(mode="before")
    @classmethod
    def _estimator_options(cls, values: Any) -> Any:
        """Read the estimator's name alone, and options that belong to the section."""
        given = values.get("adv_estimator") if isinstance(values, dict) else None
        if isinstance(given, str):
            return {**values, "adv_estimator": {"name": given}}
        if not isinstance(given, dict):
            return values
        options = ("normalize_rewards", "use_leave_one_out_baseline")
        inner = {key: given[key] for key in options if key in given}
        for key in inner:
            if values.get(key, inner[key]) != inner[key]:
                raise ValueError(
                    f"adv_estimator.{key}={inner[key]!r} contradicts "
                    f"{key}={values[key]!r}: leave the first out."
                )
        rest = {key: value for key, value in given.items() if key not in inner}
        return {**values, **inner, "adv_estimator": rest}

    @model_validator(mode="after")
    def _multiplier_has_effect(self) -> Self:
        if self.batch_multiplier != 1 and not self.use_dynamic_sampling:
            raise ValueError(
                f"batch_multiplier={self.batch_multiplier:g} samples prompts of which "
                "only use_dynamic_sampling=true leaves some out: set that, or leave "
                "batch_multiplier at 1."
            )
        return self

    @model_validator(mode="after")
    def _enough_to_compare(self) -> Self:
        estimator = self.adv_estimator
        alone = estimator.name == "reinforce_plus_plus" and not estimator.minus_baseline
        if self.num_generations_per_prompt < 2 and (
            self.use_dynamic_sampling or not alone
        ):
            raise ValueError(
                f"num_generations_per_prompt={self.num_generations_per_prompt} leaves "
                "nothing to compare a response with: raise it to at least 2, or use "
                "adv_estimator.name 'reinforce_plus_plus' with minus_baseline false "
                "and without dynamic sampling."
            )
        return self


class GRPOMasterConfig(MasterConfig):
    """A whole GRPO recipe.

    Example:
        >>> config = GRPOMasterConfig.from_mapping(
        ...     {"policy": {"model_name": "my-model"}}
        ... )
        >>> config.grpo.num_generations_per_prompt
        16
    """

    grpo: GRPOConfig = Field(default_factory=GRPOConfig)
    """How much is sampled, how rewards become advantages."""
    loss_fn: ClippedPGLossConfig = Field(default_factory=ClippedPGLossConfig)
    """Clipped policy gradient with a KL penalty."""

    @property
    def algorithm_section(self) -> GRPOConfig:
        """The grpo section, under the name that every algorithm has."""
        return self.grpo

    @property
    def samples_per_step(self) -> int:
        """Responses per step: P * G."""
        return self.grpo.num_prompts_per_step * self.grpo.num_generations_per_prompt

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        validate_master(self)
        validate_batches(
            self.policy,
            self.parallel_dims,
            self.samples_per_step,
            "grpo.num_prompts_per_step x grpo.num_generations_per_prompt",
        )
        self._settle_response_length()
        check_async(self)
        updates = self.samples_per_step // self.policy.train_global_batch_size
        if self.loss_fn.force_on_policy_ratio and updates != 1:
            raise ValueError(
                f"loss_fn.force_on_policy_ratio needs one update per step, but "
                f"{self.samples_per_step} responses make {updates} updates of "
                f"policy.train_global_batch_size={self.policy.train_global_batch_size}."
                f" Set it to {self.samples_per_step}."
            )
        return self

    def _settle_response_length(self) -> None:
        shaping = self.grpo.reward_shaping
        if not shaping.enabled or shaping.stop_properly_penalty_coef is not None:
            return
        if shaping.max_response_length is None:
            longest = self.policy.generation.max_new_tokens
            self.grpo._settle(
                "reward_shaping", shaping.merged({"max_response_length": longest})
            )

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let train_global_batch_size be a step's responses unless it is given."""
        return batch_size_follows(values, "grpo", GRPOConfig, _STEP)
