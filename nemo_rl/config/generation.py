"""The policy.generation section: how responses are sampled, by whichever engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from nemo_rl.config.backends import check_name
from nemo_rl.config.base import BaseConfig
from nemo_rl.config.refit import GuardConfig, RefitConfig


class VllmEngineConfig(BaseConfig):
    """policy.generation.vllm_cfg: the engine of backend vllm."""

    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs (or CPU processes) that share one engine's layers."""
    pipeline_parallel_size: int = Field(1, ge=1)
    """GPUs in sequence in one engine."""
    expert_parallel_size: int = Field(1, ge=1)
    """Above 1: experts are spread over all GPUs of an engine."""
    gpu_memory_utilization: float = Field(0.6, gt=0, le=1)
    """Fraction of the GPU's memory for weights and cache."""
    enforce_eager: bool = False
    """Do not capture CUDA graphs; on CPUs always so."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest sequence; null: policy.max_total_sequence_length."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    """Element type of the engine; null: policy.precision."""
    kv_cache_dtype: str = "auto"
    """Element type of the cache."""
    async_engine: bool = False
    """Run AsyncLLM: the engine's core in a process of its own."""
    load_format: str = "dummy"
    """dummy: start with random weights, training sends the real ones; auto: read."""
    skip_tokenizer_init: bool = True
    """Tokens in, tokens out; stop strings load the tokenizer all the same."""
    use_deep_gemm: bool = False
    """Not available: 8-bit matrix products."""
    num_first_layers_in_bf16: int = Field(0, ge=0)
    """Accepted; no model is 8-bit."""
    num_last_layers_in_bf16: int = Field(0, ge=0)
    """Accepted; no model is 8-bit."""
    enable_vllm_metrics_logger: bool = False
    """Not available: log the engine's own metrics."""
    vllm_metrics_logger_interval: float = Field(0.5, gt=0)
    """Accepted, see enable_vllm_metrics_logger."""
    expose_http_server: bool = False
    """Not available: serve an OpenAI-style API beside training."""
    hf_overrides: dict[str, Any] = Field(default_factory=dict)
    """Entries of config.json to replace, beside policy.hf_config_overrides."""


class GenerationResourcesConfig(BaseConfig):
    """The part of the cluster that generates, where it does not share it."""

    gpus_per_node: int | None = Field(None, ge=1)
    """GPUs of each node that generate; null: all of num_nodes."""
    cpu_workers_per_node: int | None = Field(None, ge=1)
    """The same of a cluster without GPUs."""
    num_nodes: int | None = Field(None, ge=1)
    """Whole nodes that generate; null: a part of every node."""


class ColocatedConfig(BaseConfig):
    """Whether generation and training share their machines."""

    enabled: bool = True
    """Share them, taking turns."""
    resources: GenerationResourcesConfig = Field(
        default_factory=GenerationResourcesConfig
    )
    """What generation has for itself, taken from the cluster section's machines."""


class GenerationConfig(BaseConfig):
    """How responses are sampled."""

    backend: str | None = None
    """Engine: vllm, megatron, hf, "module:Class"; None: the trainer's."""
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
    vllm_cfg: VllmEngineConfig = Field(default_factory=VllmEngineConfig)
    """The engine of backend vllm."""
    vllm_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's EngineArgs, such as max_num_seqs."""
    mcore_generation_config: dict[str, Any] = Field(default_factory=dict)
    """Accepted; the Megatron backend needs no sizes of its own."""
    colocated: ColocatedConfig = Field(default_factory=ColocatedConfig)
    """Whether generation and training share their machines."""
    refit: RefitConfig = Field(default_factory=RefitConfig)
    """How weights move to a generator with its own copy."""
    guard: GuardConfig = Field(default_factory=GuardConfig)
    """Checks that such a generator has the trainer's weights."""

    @field_validator("backend")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            check_name("generation", value)
        return value
