"""The policy.generation section: how responses are sampled, by whichever engine."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from nemo_rl.config.backends import check_name
from nemo_rl.config.base import BaseConfig


class VllmConfig(BaseConfig):
    """policy.generation.vllm_cfg; accepted, read only by the vLLM backend."""

    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share one engine."""
    pipeline_parallel_size: int = Field(1, ge=1)
    """GPUs in sequence in one engine."""
    expert_parallel_size: int = Field(1, ge=1)
    """GPUs that share the experts of a layer."""
    gpu_memory_utilization: float = Field(0.6, gt=0, le=1)
    """Fraction of the GPU's memory for weights and cache."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest sequence; None means policy.max_total_sequence_length."""
    precision: str | None = None
    """None means policy.precision."""
    kv_cache_dtype: str = "auto"
    """Element type of the cache."""
    async_engine: bool = False
    """Serve requests one by one."""
    load_format: str = "dummy"
    """Weights come from training, so none are read at start."""
    skip_tokenizer_init: bool = True
    """Tokens in, tokens out."""
    use_deep_gemm: bool = False
    """8-bit matrix products."""
    num_first_layers_in_bf16: int = Field(0, ge=0)
    """Layers kept in bfloat16 at the bottom of an 8-bit model."""
    num_last_layers_in_bf16: int = Field(0, ge=0)
    """Layers kept in bfloat16 at the top of an 8-bit model."""
    enable_vllm_metrics_logger: bool = False
    """Log the engine's own metrics."""
    vllm_metrics_logger_interval: float = Field(0.5, gt=0)
    """Seconds between two of them."""
    expose_http_server: bool = False
    """Serve an OpenAI-style API beside training."""
    hf_overrides: dict[str, Any] = Field(default_factory=dict)
    """Entries of the model's config.json to replace."""


class GenerationResourcesConfig(BaseConfig):
    """Machines of a generation that does not share those of training."""

    gpus_per_node: int | None = Field(None, ge=0)
    """GPUs of each node that generate."""
    num_nodes: int | None = Field(None, ge=0)
    """Nodes that generate."""


class ColocatedConfig(BaseConfig):
    """Whether generation and training share their machines."""

    enabled: bool = True
    """Share them, taking turns."""
    resources: GenerationResourcesConfig = Field(
        default_factory=GenerationResourcesConfig
    )
    """Accepted; read where they do not share."""


class GenerationConfig(BaseConfig):
    """How responses are sampled."""

    backend: str | None = None
    """Engine: megatron, hf, a registered name, "module:Class"; None: the trainer's."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest response in tokens, the stop token included."""
    temperature: float = Field(1.0, ge=0)
    """Divides the logits, in sampling and in training; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with this much probability."""
    top_k: int | None = Field(None, ge=1)
    """Sample from the k likeliest tokens; None means all."""
    stop_token_ids: list[int] | None = None
    """Tokens that end a response; None means the model's end-of-text tokens."""
    stop_strings: list[str] | None = None
    """Strings that end a response."""
    include_stop_str_in_output: bool = True
    """Always true: what ended a response stays a part of it."""
    model_name: str | None = None
    """Accepted; responses come from policy.model_name."""
    tokenizer: dict[str, Any] | None = None
    """Accepted; policy.tokenizer decides."""
    ignore_eos: bool = False
    """Go on to max_new_tokens whatever is sampled; for measurements."""
    vllm_cfg: VllmConfig = Field(default_factory=VllmConfig)
    """Read only by the vLLM backend."""
    vllm_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Read only by the vLLM backend."""
    mcore_generation_config: dict[str, Any] = Field(default_factory=dict)
    """Accepted; the Megatron backend needs no sizes of its own."""
    colocated: ColocatedConfig = Field(default_factory=ColocatedConfig)
    """Whether generation and training share their machines."""

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            check_name("generation", value)
        return value
