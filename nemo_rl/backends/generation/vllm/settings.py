"""What one vLLM engine is started with: its arguments and its process's variables.

Plain data and pure functions; neither torch nor vLLM is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError

EXTENSION = "nemo_rl.backends.generation.vllm.extension.WorkerExtension"
"""Mixed into vLLM's own worker class in every process of an engine."""

_LEAST_TEMPERATURE = 0.01
"""vLLM raises lower ones to this without a word; log-probs would be wrong."""

_CPU_CACHE_ROWS = 64
_CPU_CACHE_BOUNDS = (64 * 2**20, 4 * 2**30)
"""Cache of a CPU engine: this many longest sequences, within these bytes."""


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """One engine; the same for all replicas but for ``seed``.

    Attributes:
        model: local Hugging Face folder: configuration, tokenizer and, with
            ``load_format`` "auto", weights.
        dtype: of weights and activations: "float32", "bfloat16", "float16".
        max_model_len: prompt and response together, in tokens.
        max_new_tokens: longest response in tokens, the stop token included.
        use_gpu: False runs vLLM's CPU engine.
        tensor_parallel: processes that share every layer.
        pipeline_parallel: processes in sequence.
        expert_parallel: spread experts over all processes of the engine.
        temperature: divides the logits; 0 is greedy.
        top_p: nucleus of this much probability.
        top_k: the k likeliest tokens; None means all.
        stop_token_ids: a response ends with the first of these, which stays in it.
        stop_strings: a response ends once its text contains one of these.
        load_format: "dummy": random weights until the first refit.
        with_tokenizer: load it, for stop strings.
        tokenizer: its folder; None: the model's.
        async_engine: run AsyncLLM instead of an engine that is stepped by hand.
        kv_bytes_per_token: bytes of keys and values of one token; sizes a CPU's cache.
        colocated: take turns with training on the same GPUs.
        seed: of the engine; rows have seeds of their own.
        threads: CPU threads of each process.
        more: further arguments of vLLM's EngineArgs; they win.

    Raises:
        ConfigurationError: a temperature that vLLM does not sample with.
    """

    model: str
    dtype: str
    max_model_len: int
    max_new_tokens: int = 512
    use_gpu: bool = False
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    expert_parallel: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    load_format: str = "dummy"
    with_tokenizer: bool = False
    tokenizer: str | None = None
    async_engine: bool = False
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.6
    kv_cache_dtype: str = "auto"
    kv_bytes_per_token: int | None = None
    colocated: bool = False
    seed: int = 0
    threads: int = 1
    hf_overrides: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if 0 < self.temperature < _LEAST_TEMPERATURE:
            raise ConfigurationError(
                f"policy.generation.temperature={self.temperature:g}: vLLM samples "
                f"with {_LEAST_TEMPERATURE:g} at least, or 0 for the likeliest token."
            )

    @property
    def processes(self) -> int:
        """Processes of the engine that hold weights."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def filters(self) -> bool:
        """Whether top-k or top-p leave tokens out."""
        return self.top_p < 1.0 or self.top_k is not None

    @property
    def scales_logits(self) -> bool:
        """Whether the model divides its logits by the temperature, not the sampler.

        vLLM reports log-probs either before the temperature or after the filters.
        Trainers want them after the temperature and before the filters. Those of
        greedy responses of such an engine are after the temperature too.
        """
        return self.filters and self.temperature not in (0.0, 1.0)


def engine_arguments(settings: VllmSettings) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs.

    Log-probs are those of ``softmax(logits / temperature)`` over the whole vocabulary.
    Two steps of the engine never overlap, so that every token's version is known.
    """
    given: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        "enable_expert_parallel": settings.expert_parallel,
        "load_format": settings.load_format,
        "skip_tokenizer_init": not settings.with_tokenizer,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "seed": settings.seed,
        "logprobs_mode": ("raw_logprobs" if settings.filters else "processed_logprobs"),
        "worker_extension_cls": EXTENSION,
        "async_scheduling": False,
        "disable_log_stats": True,
        "trust_remote_code": False,
        # generation_config.json would change how is sampled without a word.
        "generation_config": "vllm",
        "enforce_eager": settings.enforce_eager,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "enable_sleep_mode": settings.use_gpu and settings.colocated,
    }
    if settings.with_tokenizer and settings.tokenizer is not None:
        given["tokenizer"] = settings.tokenizer
    if settings.hf_overrides:
        given["hf_overrides"] = dict(settings.hf_overrides)
    if settings.processes > 1:
        given["distributed_executor_backend"] = "mp"
    if not settings.use_gpu:
        given |= {
            "enforce_eager": True,  # no compiler for CPUs
            # A fraction of the machine's memory; unused beside the next argument.
            "gpu_memory_utilization": 0.05,
            "kv_cache_memory_bytes": _cpu_cache_bytes(settings),
        }
    return {**given, **settings.more}


def process_variables(settings: VllmSettings) -> dict[str, str]:
    """Environment variables of the engine's process, set before vLLM is imported."""
    variables = {
        "HF_HUB_OFFLINE": "1",  # the folder is there already
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # The engine's core runs where its weights are updated, between two steps.
        "VLLM_ENABLE_V1_MULTIPROCESSING": (
            "1" if settings.async_engine or settings.pipeline_parallel > 1 else "0"
        ),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if not settings.use_gpu:
        variables |= {
            # The sampler's compiled part takes a minute to compile.
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": str(settings.threads),
            # Cores are shared with training: the scheduler of the system decides.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
    return variables


def _cpu_cache_bytes(settings: VllmSettings) -> int:
    low, high = _CPU_CACHE_BOUNDS
    per_token = settings.kv_bytes_per_token
    if per_token is None:
        return 4 * low
    rows = int(settings.more.get("max_num_seqs") or _CPU_CACHE_ROWS)
    return min(high, max(low, rows * settings.max_model_len * per_token))
