"""Configuration of reward models: the rm section and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from nemo_rl.config.loop import RowLoopConfig
from nemo_rl.config.master import MasterConfig, batch_size_follows
from nemo_rl.config.validation import validate_batches, validate_master


class RMConfig(RowLoopConfig):
    """The rm section."""

    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps them around 0."""


class RMMasterConfig(MasterConfig):
    """A whole recipe of a reward model."""

    samples: ClassVar[bool] = False
    scores: ClassVar[bool] = True
    section_defaults: ClassVar[dict[str, Any]] = {
        "policy": {"reward_model_cfg": {"enabled": True}},
        "checkpointing": {
            "checkpoint_dir": "results/rm",
            "metric_name": "val:accuracy",
            "higher_is_better": True,
        },
    }

    rm: RMConfig = Field(default_factory=RMConfig)
    """How much is trained on."""

    @property
    def algorithm_section(self) -> RMConfig:
        """The rm section, under the name that every algorithm has."""
        return self.rm

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let train_global_batch_size follow rm.batch_size."""
        return batch_size_follows(values, "rm", RMConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.policy.reward_model_cfg.enabled:
            raise ValueError(
                "policy.reward_model_cfg.enabled=false, but algorithm rm trains a "
                "score: set it to true or leave it out."
            )
        validate_master(self)
        validate_batches(
            self.policy, self.parallel_dims, self.rm.batch_size, "rm.batch_size"
        )
        return self
