"""The policy.megatron_cfg section: how Megatron splits and runs the model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.optimizer import MegatronOptimizerConfig, MegatronSchedulerConfig


class DDPConfig(BaseConfig):
    """policy.megatron_cfg.distributed_data_parallel_config."""

    grad_reduce_in_fp32: bool = True
    """Sum gradients in float32."""
    overlap_grad_reduce: bool | None = None
    """Overrides megatron_cfg.overlap_grad_reduce."""
    overlap_param_gather: bool | None = None
    """Accepted, see megatron_cfg.overlap_param_gather."""
    average_in_collective: bool = False
    """Accepted; gradients are summed, because losses are already per-token means."""
    use_custom_fsdp: bool = False
    """Not available."""
    data_parallel_sharding_strategy: str | None = None
    """Accepted; use_distributed_optimizer decides."""
    bucket_size: int | None = Field(None, ge=1)
    """Parameters per gradient bucket; None lets Megatron choose."""


class MegatronConfig(BaseConfig):
    """How Megatron splits and runs the model."""

    enabled: bool | None = None
    """Train with Megatron; None: unless another backend is on."""
    tensor_model_parallel_size: int = Field(1, ge=1)
    """Processes that share every layer; divides attention and key-value heads."""
    pipeline_model_parallel_size: int = Field(1, ge=1)
    """Processes that share the stack of layers; divides the number of layers."""
    virtual_pipeline_model_parallel_size: int | None = Field(None, ge=1)
    """Not available: chunks of layers per pipeline process."""
    context_parallel_size: int = Field(1, ge=1)
    """Not available above 1: processes that share every sequence."""
    expert_model_parallel_size: int = Field(1, ge=1)
    """Processes that share the experts of a layer; divides their number."""
    expert_tensor_parallel_size: int | None = Field(None, ge=1)
    """Not available above 1: processes that share every expert."""
    layer_spec: Literal["auto", "te", "torch"] = "auto"
    """Transformer Engine layers, plain torch layers, or TE where GPUs have it."""
    sequence_parallel: bool = False
    """Not available: split activations outside tensor-parallel regions."""
    activation_checkpointing: bool = False
    """Recompute every layer in the backward pass."""
    use_distributed_optimizer: bool = True
    """Spread optimizer state over data-parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Accepted; weights are gathered at the end of every update."""
    optimizer: MegatronOptimizerConfig = Field(default_factory=MegatronOptimizerConfig)
    """What is set here wins over policy.optimizer."""
    scheduler: MegatronSchedulerConfig | None = None
    """Translated into policy.scheduler if set."""
    distributed_data_parallel_config: DDPConfig = Field(default_factory=DDPConfig)
    """Megatron's gradient reduction."""
    num_layers_in_first_pipeline_stage: int | None = None
    """Not available: stages hold the same number of layers."""
    num_layers_in_last_pipeline_stage: int | None = None
    """Not available: stages hold the same number of layers."""
    pipeline_dtype: str | None = None
    """Accepted; activations travel in policy.precision."""
    empty_unused_memory_level: int = Field(0, ge=0, le=2)
    """Accepted; the CUDA cache is left to its allocator."""
    force_reconvert_from_hf: bool = False
    """Accepted; weights are read from the Hugging Face folder at every start."""
    converter_type: str | None = None
    """Accepted; the model's config.json names its architecture."""
    apply_rope_fusion: bool = False
    """Use the fused rotary embedding kernel."""
    bias_activation_fusion: bool = False
    """Use the fused bias and activation kernel."""
    gradient_accumulation_fusion: bool = False
    """Use the fused gradient accumulation kernel (needs apex or TE)."""
    defer_fp32_logits: bool = False
    """Accepted; log-probabilities are computed in float32."""
    use_linear_ce_fusion_loss: bool = False
    """Accepted; log-probabilities are computed in chunks, see logprob_chunk_size."""
    linear_ce_fusion_chunk_size: int | None = None
    """Accepted, see use_linear_ce_fusion_loss."""
    freeze_moe_router: bool = False
    """Keep the weights that choose experts as they are."""
    moe_router_dtype: Literal["fp32", "fp64"] | None = None
    """Precision of the scores of experts; None is fp32."""
    moe_router_load_balancing_type: str | None = None
    """Only "none": there is no auxiliary loss."""
    moe_router_bias_update_rate: float = 0.0
    """How far an update moves the bias of the choice of experts (DeepSeek-V3)."""
    moe_permute_fusion: bool = False
    """Use the fused kernel that sorts tokens by expert (needs TE)."""
    moe_per_layer_logging: bool = False
    """Not available: metrics of every layer's experts."""
    moe_enable_deepep: bool = False
    """Not available: DeepEP's exchange of tokens."""
    moe_token_dispatcher_type: Literal["alltoall", "allgather"] | None = None
    """How tokens get to the processes of their experts; None is alltoall."""
    moe_shared_expert_overlap: bool = False
    """Not available: shared experts beside the exchange of tokens."""
    track_moe_metrics: bool = False
    """Not available: metrics of the experts' load."""
    train_iters: int | None = None
    """Accepted; the algorithm's max_num_steps decides."""
    fp8_cfg: dict[str, Any] | None = None
    """Not available: training in 8 bits."""
    peft: dict[str, Any] | None = None
    """Not available: low-rank adapters."""
    env_vars: dict[str, str] | None = None
    """Extra environment variables of the training workers."""
