"""The policy.dtensor_cfg section: the PyTorch-native backend, FSDP2 and DTensor."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig


class DTensorConfig(BaseConfig):
    """How PyTorch's own parallelism splits and runs a Hugging Face model."""

    enabled: bool = False
    """Train with FSDP2 and DTensor instead of Megatron."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer in main memory between layers; on GPUs."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Processes that share every layer; divides attention and key-value heads."""
    context_parallel_size: int = Field(1, ge=1)
    """Not available above 1: processes that share every sequence."""
    activation_checkpointing: bool = False
    """Recompute every layer in the backward pass."""
    sequence_parallel: bool = False
    """Not available: split activations outside tensor-parallel regions."""
    custom_parallel_plan: str | None = None
    """Tensor-parallel plan as "module:name"; None: the one of the model's family."""
    clear_cache_every_n_steps: int | None = Field(None, ge=1)
    """Micro-batches after which unused CUDA memory is given back; None: never."""
    lora_cfg: dict[str, Any] | None = None
    """Not available: low-rank adapters."""
    automodel_kwargs: dict[str, Any] | None = None
    """Not available: arguments of another library's models."""
    env_vars: dict[str, str] | None = None
    """Extra environment variables of the training workers."""

    @model_validator(mode="before")
    @classmethod
    def _without_version(cls, values: Any) -> Any:
        """Drop `_v2`: it chooses between two generations, of which there is one."""
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if key != "_v2"}
        return values
