"""Configuration of supervised fine-tuning: the sft section and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.master import MasterConfig, batch_size_follows
from nemo_rl.config.validation import validate_batches, validate_master


class SFTConfig(BaseConfig):
    """The sft section."""

    batch_size: int = Field(32, ge=1)
    """Conversations per step; policy.train_global_batch_size follows it."""
    max_num_steps: int = Field(5000, ge=1)
    """Steps after which training ends."""
    max_num_epochs: int = Field(3, ge=1)
    """Passes over the data after which training ends."""
    max_time_s: float | None = Field(None, gt=0)
    """Seconds after which training ends at the next step; None: no limit."""
    val_period: int = Field(10, ge=0)
    """Steps between two validations; 0: none."""
    val_batches: int = Field(8, ge=1)
    """Batches per validation."""
    val_global_batch_size: int = Field(32, ge=1)
    """Conversations per validation batch."""
    val_micro_batch_size: int = Field(1, ge=1)
    """Conversations per forward pass of a validation."""
    val_at_start: bool = False
    """Validate before the first step."""
    val_at_end: bool = False
    """Validate after the last step."""
    seed: int = Field(42, ge=0)
    """Seed of the data order."""


class SFTMasterConfig(MasterConfig):
    """A whole recipe of supervised fine-tuning."""

    section_defaults: ClassVar[dict[str, Any]] = {
        "checkpointing": {
            "checkpoint_dir": "results/sft",
            "metric_name": "val:loss",
            "higher_is_better": False,
        }
    }

    sft: SFTConfig = Field(default_factory=SFTConfig)
    """How much is trained on, for how long."""

    @property
    def algorithm_section(self) -> SFTConfig:
        """The sft section, under the name that every algorithm has."""
        return self.sft

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let train_global_batch_size follow sft.batch_size."""
        return batch_size_follows(values, "sft", SFTConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        validate_master(self)
        validate_batches(
            self.policy, self.parallel_dims, self.sft.batch_size, "sft.batch_size"
        )
        return self
