"""Sections that recipes may have but that must stay switched off in this version.

They are fields, so that a recipe which names them is read and their keys are
checked; `config.availability` refuses to switch them on.
"""

from __future__ import annotations

from pydantic import Field

from nemo_rl.config.base import BaseConfig


class SequencePackingConfig(BaseConfig):
    """policy.sequence_packing: several sequences in one row; not available."""

    enabled: bool = False
    """Not available."""
    algorithm: str = "modified_first_fit_decreasing"
    """Accepted, see enabled."""
    sequence_length_round: int = Field(64, ge=1)
    """Accepted, see enabled."""
    train_mb_tokens: int | None = None
    """Accepted, see enabled."""
    logprob_mb_tokens: int | None = None
    """Accepted, see enabled."""
    sequence_length_pad_multiple: int | None = None
    """Accepted, see enabled."""


class DynamicBatchingConfig(BaseConfig):
    """policy.dynamic_batching: micro-batches of equal token count; not available."""

    enabled: bool = False
    """Not available."""
    train_mb_tokens: int | None = None
    """Accepted, see enabled."""
    logprob_mb_tokens: int | None = None
    """Accepted, see enabled."""
    sequence_length_round: int = Field(64, ge=1)
    """Accepted, see enabled."""
