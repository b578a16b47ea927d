"""How trained weights reach a generator of its own, and how that is checked."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemo_rl.config.base import BaseConfig


class RefitConfig(BaseConfig):
    """policy.generation.refit: how weights move to a generator with its own copy."""

    transport: Literal["auto", "ipc", "nccl", "gloo", "files"] = "auto"
    """ipc (one machine), nccl or gloo (network), files; auto: the fastest that fits."""
    bucket_mib: int = Field(256, ge=1)
    """Megabytes sent at once; two such buckets are held at a time."""
    folder: str | None = None
    """Folder that all nodes see, for files; null: beside the logs."""
    timeout_s: float = Field(600.0, gt=0)
    """Seconds after which a transfer that makes no progress ends the run."""


class GuardConfig(BaseConfig):
    """policy.generation.guard: does the generator have the trainer's weights?"""

    enabled: bool = True
    """Check after every transfer of weights and on every rollout."""
    digests: bool = True
    """Compare a digest of every tensor that was sent with what the engine holds."""
    canary_prompts: int = Field(4, ge=0)
    """Prompts answered after a transfer and scored by the trainer; 0: none."""
    canary_tokens: int = Field(16, ge=1)
    """Tokens of each such answer."""
    canary_tolerance: float | None = Field(None, gt=0)
    """Largest mean log-prob difference of a canary; null: 0.001, in bfloat16 0.2."""
    rollout_rows: int = Field(8, ge=0)
    """Responses of a rollout that the trainer scores before it learns from them."""
    max_mult_prob_error: float = Field(1.05, gt=1)
    """Largest mean exp|log-prob difference| of those responses."""
    action: Literal["warn", "resync", "halt"] = "resync"
    """On a difference: say so, send the weights once more and then halt, or halt."""
