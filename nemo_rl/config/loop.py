"""Settings of the training loop, which every algorithm's own section starts with."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from nemo_rl.config.base import BaseConfig


class LoopConfig(BaseConfig):
    """How long to train, when to validate, and the seed."""

    max_num_steps: int = Field(1000, ge=1)
    """Steps after which training ends."""
    max_num_epochs: int = Field(1, ge=1)
    """Passes over the data after which training ends."""
    max_time_s: float | None = Field(None, gt=0)
    """Seconds after which training ends at the next step; None: no limit."""
    val_period: int = Field(10, ge=0)
    """Steps between two validations; 0: none."""
    val_at_start: bool = False
    """Validate before the first step."""
    val_at_end: bool = False
    """Validate after the last step."""
    seed: int = Field(42, ge=0)
    """Seed of data order and sampling."""


class RowLoopConfig(LoopConfig):
    """The loop of an algorithm that learns from the rows of a data set themselves."""

    batch_size: int = Field(32, ge=1)
    """Rows of the data set per step; policy.train_global_batch_size follows it."""
    val_batches: int = Field(8, ge=1)
    """Batches per validation."""
    val_global_batch_size: int = Field(32, ge=1)
    """Rows of the data set per validation batch."""
    val_micro_batch_size: int | None = Field(None, ge=1)
    """Accepted; policy.logprob_batch_size is the size of a forward pass."""

    @property
    def max_val_samples(self) -> int:
        """Rows of the data set per validation."""
        return self.val_batches * self.val_global_batch_size

    @property
    def val_batch_size(self) -> int:
        """Rows of the data set per validation batch."""
        return self.val_global_batch_size


class OpenLoopConfig(LoopConfig):
    """The section of an algorithm of one's own: any keys beside the loop's."""

    model_config = ConfigDict(extra="allow")

    batch_size: int = Field(32, ge=1)
    """Rows per step."""
    max_val_samples: int = Field(256, ge=1)
    """Rows per validation."""
    val_batch_size: int = Field(256, ge=1)
    """Rows per validation batch."""
