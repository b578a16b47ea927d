"""The loss_fn section of a GRPO recipe: which policy-gradient loss, which penalties.

Knows the rules between its own keys; those that involve other sections are in
``config.py``.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig


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
    use_kl_in_reward: bool = False
    """Subtract the penalty from the reward; the loss then has no such term."""
    ratio_clip_min: float = Field(0.2, ge=0, le=1)
    """Ratios below 1 - this gain nothing."""
    ratio_clip_max: float = Field(0.2, ge=0)
    """Ratios above 1 + this gain nothing."""
    ratio_clip_c: float | None = Field(None, gt=1)
    """Dual clip: bound of the loss where the advantage is negative; None: none."""
    use_cispo: bool = False
    """CISPO: log-prob times the clipped ratio, which has no gradient of its own."""
    sequence_level_importance_ratios: bool = False
    """GSPO: one ratio per response, the geometric mean of its tokens' ratios."""
    use_on_policy_kl_approximation: bool = False
    """Weight the divergence by the ratio of current to sampling probability."""
    use_importance_sampling_correction: bool = False
    """Weight tokens by the ratio of training to sampling probability."""
    truncated_importance_sampling_type: (
        Literal["tis", "icepop", "seq-mask-tis"] | None
    ) = "tis"
    """Weights outside the bounds: clamp (tis), leave out tokens (icepop) or whole
    responses by their geometric mean (seq-mask-tis); None: keep them."""
    truncated_importance_sampling_ratio: float | None = Field(None, gt=0)
    """Upper bound of those weights; None: none."""
    truncated_importance_sampling_ratio_min: float | None = Field(None, ge=0)
    """Lower bound of those weights; None: none."""
    token_level_loss: bool = True
    """Average over tokens; false averages over responses first."""
    constant_response_length: int | None = Field(None, ge=1)
    """Dr. GRPO: divide a response's summed loss by this, not by its length; None: by
    its length. Needs token_level_loss false; max_new_tokens is the usual value."""
    force_on_policy_ratio: bool = False
    """Take the ratio as 1: for one update per step."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus; above 0 it costs a pass over the logits."""
    log_entropy: bool = False
    """Log the entropy of the token distribution also where it has no weight."""

    @property
    def needs_entropy(self) -> bool:
        """Whether the engine has to compute entropies."""
        return self.log_entropy or self.entropy_coef > 0

    @property
    def kl_in_loss(self) -> bool:
        """Whether the penalty is a term of the loss."""
        return self.reference_policy_kl_penalty > 0 and not self.use_kl_in_reward

    @model_validator(mode="after")
    def _kl_in_reward_fits(self) -> Self:
        if self.use_kl_in_reward and self.force_on_policy_ratio:
            raise ValueError(
                "use_kl_in_reward=true needs the log-probs before the update, which "
                "force_on_policy_ratio=true does without: set one of the two to false."
            )
        if self.use_kl_in_reward and self.reference_policy_kl_penalty == 0:
            raise ValueError(
                "use_kl_in_reward=true has nothing to subtract while "
                "reference_policy_kl_penalty=0: raise that, such as to 0.01."
            )
        return self

    @model_validator(mode="after")
    def _ratios_fit(self) -> Self:
        if self.sequence_level_importance_ratios and self.token_level_loss:
            raise ValueError(
                "sequence_level_importance_ratios=true gives every token of a response "
                "the same ratio, so responses are averaged, not tokens: set "
                "token_level_loss to false."
            )
        if self.constant_response_length is not None and self.token_level_loss:
            raise ValueError(
                f"constant_response_length={self.constant_response_length} replaces a "
                "response's length, which token_level_loss=true does not divide by: "
                "set token_level_loss to false."
            )
        others = {
            "sequence_level_importance_ratios=true": (
                self.sequence_level_importance_ratios
            ),
            f"ratio_clip_c={self.ratio_clip_c}": self.ratio_clip_c is not None,
        }
        for name, given in others.items():
            if self.use_cispo and given:
                raise ValueError(
                    f"use_cispo=true is another loss than {name} belongs to: give one "
                    "of the two."
                )
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        kind = self.truncated_importance_sampling_type
        low = self.truncated_importance_sampling_ratio_min
        high = self.truncated_importance_sampling_ratio
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"truncated_importance_sampling_ratio_min={low} exceeds "
                f"truncated_importance_sampling_ratio={high}: lower the first."
            )
        if kind not in ("icepop", "seq-mask-tis"):
            return self
        if not self.use_importance_sampling_correction:
            raise ValueError(
                f"truncated_importance_sampling_type={kind!r} acts on weights that "
                "use_importance_sampling_correction=false does not apply: set it to "
                "true."
            )
        if low is None or high is None:
            raise ValueError(
                f"truncated_importance_sampling_type={kind!r} needs both bounds: set "
                "truncated_importance_sampling_ratio_min and "
                "truncated_importance_sampling_ratio, such as 0.5 and 2."
            )
        if kind == "seq-mask-tis" and self.sequence_level_importance_ratios:
            raise ValueError(
                "truncated_importance_sampling_type='seq-mask-tis' weights tokens, "
                "sequence_level_importance_ratios=true responses: use 'icepop', which "
                "then leaves out whole responses."
            )
        return self
