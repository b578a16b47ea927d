"""Configuration of supervised fine-tuning: the sft section and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from nemo_rl.config.loop import RowLoopConfig
from nemo_rl.config.master import MasterConfig, batch_size_follows
from nemo_rl.config.validation import validate_batches, validate_master


class SFTConfig(RowLoopConfig):
    """The sft section."""

    max_num_steps: int = Field(5000, ge=1)
    """Steps after which training ends."""
    max_num_epochs: int = Field(3, ge=1)
    """Passes over the data after which training ends."""


class SFTMasterConfig(MasterConfig):
    """A whole recipe of supervised fine-tuning."""

    samples: ClassVar[bool] = False
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
