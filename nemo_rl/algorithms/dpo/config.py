"""Configuration of DPO: the dpo section and the whole recipe.

DPO: Rafailov et al. 2023, "Direct Preference Optimization" (arXiv:2305.18290).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from nemo_rl.config.loop import RowLoopConfig
from nemo_rl.config.master import MasterConfig, batch_size_follows
from nemo_rl.config.validation import validate_batches, validate_master


class DPOConfig(RowLoopConfig):
    """The dpo section."""

    beta: float = Field(0.1, gt=0)
    """Weight of the divergence from the reference policy."""
    reference_policy_kl_penalty: float | None = Field(None, gt=0)
    """NeMo-RL's name of beta; wins over it if set."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the preferences that are taken to be the wrong way round."""
    preference_average_log_probs: bool = False
    """Compare mean instead of summed log-probabilities of the responses."""
    sft_average_log_probs: bool = False
    """The same for the likelihood term."""
    preference_loss_weight: float = Field(1.0, ge=0)
    """Weight of the preference term."""
    sft_loss_weight: float = Field(0.0, ge=0)
    """Weight of the chosen response's likelihood."""

    @model_validator(mode="after")
    def _one_beta(self) -> Self:
        if self.reference_policy_kl_penalty is not None:
            self._settle("beta", self.reference_policy_kl_penalty)
        return self


class DPOMasterConfig(MasterConfig):
    """A whole DPO recipe."""

    samples: ClassVar[bool] = False
    section_defaults: ClassVar[dict[str, Any]] = {
        "checkpointing": {
            "checkpoint_dir": "results/dpo",
            "metric_name": "val:loss",
            "higher_is_better": False,
        }
    }

    dpo: DPOConfig = Field(default_factory=DPOConfig)
    """How much is trained on, how far from the reference."""

    @property
    def algorithm_section(self) -> DPOConfig:
        """The dpo section, under the name that every algorithm has."""
        return self.dpo

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let train_global_batch_size follow dpo.batch_size."""
        return batch_size_follows(values, "dpo", DPOConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        validate_master(self)
        validate_batches(
            self.policy, self.parallel_dims, self.dpo.batch_size, "dpo.batch_size"
        )
        return self
