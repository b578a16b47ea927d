"""Configuration of supervised fine-tuning: the sft section and the whole recipe."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from nemo_rl.config.loop import LoopConfig
from nemo_rl.config.master import MasterConfig, batch_size_follows
from nemo_rl.config.validation import validate_batches, validate_master


class SFTConfig(LoopConfig):
    """The sft section."""

    batch_size: int = Field(32, ge=1)
    """Conversations per step; policy.train_global_batch_size follows it."""
    max_num_steps: int = Field(5000, ge=1)
    """Steps after which training ends."""
    max_num_epochs: int = Field(3, ge=1)
    """Passes over the data after which training ends."""
    val_batches: int = Field(8, ge=1)
    """Batches per validation."""
    val_global_batch_size: int = Field(32, ge=1)
    """Conversations per validation batch."""
    val_micro_batch_size: int | None = Field(None, ge=1)
    """Accepted; policy.logprob_batch_size is the size of a forward pass."""

    @property
    def max_val_samples(self) -> int:
        """Conversations per validation."""
        return self.val_batches * self.val_global_batch_size

    @property
    def val_batch_size(self) -> int:
        """Conversations per validation batch."""
        return self.val_global_batch_size


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
