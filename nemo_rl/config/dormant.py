"""Sections that recipes may have but that must stay switched off in this version.

They are fields, so that a recipe which names them is read and their keys are
checked; `config.availability` refuses to switch them on.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig


class DTensorConfig(BaseConfig):
    """policy.dtensor_cfg: the PyTorch-native backend; not available."""

    enabled: bool = False
    """Not available; train with Megatron."""
    cpu_offload: bool = False
    """Accepted, see enabled."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Accepted, see enabled."""
    context_parallel_size: int = Field(1, ge=1)
    """Accepted, see enabled."""
    activation_checkpointing: bool = False
    """Accepted, see enabled."""
    sequence_parallel: bool = False
    """Accepted, see enabled."""
    custom_parallel_plan: str | None = None
    """Accepted, see enabled."""
    clear_cache_every_n_steps: int | None = None
    """Accepted, see enabled."""
    lora_cfg: dict[str, Any] | None = None
    """Accepted, see enabled."""
    automodel_kwargs: dict[str, Any] | None = None
    """Accepted, see enabled."""
    env_vars: dict[str, str] | None = None
    """Accepted, see enabled."""

    @model_validator(mode="before")
    @classmethod
    def _without_version(cls, values: Any) -> Any:
        """Drop `_v2`: it chooses between two generations of a backend we lack."""
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if key != "_v2"}
        return values


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


class AsyncGRPOConfig(BaseConfig):
    """grpo.async_grpo: generate while training; not available."""

    enabled: bool = False
    """Not available."""
    max_trajectory_age_steps: int = Field(1, ge=1)
    """Accepted, see enabled."""
    in_flight_weight_updates: bool = False
    """Accepted, see enabled."""
    recompute_kv_cache_after_weight_updates: bool = False
    """Accepted, see enabled."""
