"""Configuration of GRPO: the grpo and loss_fn sections and the whole recipe.

GRPO: Shao et al. 2024, "DeepSeekMath" (arXiv:2402.03300).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.dormant import (
    AsyncGRPOConfig,
    RewardScalingConfig,
    RewardShapingConfig,
)
from nemo_rl.config.loop import LoopConfig
from nemo_rl.config.master import MasterConfig
from nemo_rl.config.validation import validate_batches, validate_master


class GRPOConfig(LoopConfig):
    """The grpo section: how much is sampled, how rewards become advantages."""

    num_prompts_per_step: int = Field(32, ge=1)
    """Prompts per step (P)."""
    num_generations_per_prompt: int = Field(16, ge=2)
    """Responses per prompt (G); advantages compare them with one another."""
    normalize_rewards: bool = True
    """Divide advantages by the standard deviation of the prompt's rewards."""
    use_leave_one_out_baseline: bool = True
    """Compare a response with the mean of the others, not of all."""
    max_val_samples: int = Field(256, ge=1)
    """Prompts per validation."""
    val_batch_size: int = Field(256, ge=1)
    """Prompts sampled at once in a validation."""
    max_rollout_turns: int = Field(1, ge=1)
    """Responses per conversation, with what the environment says between them."""
    overlong_filtering: bool = False
    """Leave responses that ran into max_new_tokens out of the loss."""
    use_dynamic_sampling: bool = False
    """Not available: sample until enough prompts have differing rewards."""
    dynamic_sampling_max_gen_batches: int = Field(10, ge=1)
    """Accepted, see use_dynamic_sampling."""
    batch_multiplier: float = Field(1, ge=1)
    """Accepted, see use_dynamic_sampling."""
    seq_logprob_error_threshold: float | None = Field(None, gt=0)
    """Leave out responses whose mean exp|log-prob difference| exceeds this."""
    calculate_advantages_on_gpu: bool = False
    """Accepted; advantages are computed in the driver."""
    reward_shaping: RewardShapingConfig = Field(default_factory=RewardShapingConfig)
    """Not available."""
    reward_scaling: RewardScalingConfig = Field(default_factory=RewardScalingConfig)
    """Not available."""
    async_grpo: AsyncGRPOConfig = Field(default_factory=AsyncGRPOConfig)
    """Not available."""


class ClippedPGLossConfig(BaseConfig):
    """The loss_fn section: clipped policy gradient with a KL penalty."""

    reference_policy_kl_penalty: float = Field(0.01, ge=0)
    """Weight of the penalty; 0 keeps no reference policy."""
    reference_policy_kl_type: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the divergence (Schulman 2020)."""
    kl_input_clamp_value: float | None = Field(20.0, gt=0)
    """Clamp of the log-ratio before it is exponentiated; None: no clamp."""
    kl_output_clamp_value: float | None = Field(10.0, gt=0)
    """Clamp of a token's divergence; None: no clamp."""
    ratio_clip_min: float = Field(0.2, ge=0, le=1)
    """Ratios below 1 - this gain nothing."""
    ratio_clip_max: float = Field(0.2, ge=0)
    """Ratios above 1 + this gain nothing."""
    ratio_clip_c: float | None = Field(None, gt=1)
    """Dual clip: bound of the loss where the advantage is negative; None: none."""
    use_on_policy_kl_approximation: bool = False
    """Weight the divergence by the ratio of current to sampling probability."""
    use_importance_sampling_correction: bool = False
    """Weight tokens by the ratio of training to sampling probability."""
    truncated_importance_sampling_ratio: float | None = Field(None, gt=0)
    """Upper bound of those weights; None: none."""
    sequence_level_importance_ratios: bool = False
    """Not available."""
    token_level_loss: bool = True
    """Average over tokens; false averages over responses first."""
    force_on_policy_ratio: bool = False
    """Take the ratio as 1: for one update per step."""
    use_kl_in_reward: bool = False
    """Not available."""


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
        updates = self.samples_per_step // self.policy.train_global_batch_size
        if self.loss_fn.force_on_policy_ratio and updates != 1:
            raise ValueError(
                f"loss_fn.force_on_policy_ratio needs one update per step, but "
                f"{self.samples_per_step} responses make {updates} updates of "
                f"policy.train_global_batch_size={self.policy.train_global_batch_size}."
                f" Set it to {self.samples_per_step}."
            )
        return self

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let train_global_batch_size follow P * G where only those are given."""
        section, policy = values.get("grpo") or {}, values.get("policy")
        given = {"num_prompts_per_step", "num_generations_per_prompt"} & set(section)
        if (
            given
            and isinstance(policy, dict)
            and "train_global_batch_size" not in policy
        ):
            fields = GRPOConfig.model_fields
            sizes = [
                section.get(name, fields[name].default)
                for name in ("num_prompts_per_step", "num_generations_per_prompt")
            ]
            if all(isinstance(size, int) for size in sizes):
                total = sizes[0] * sizes[1]
                return {
                    **values,
                    "policy": {**policy, "train_global_batch_size": total},
                }
        return values
