"""From a recipe's sections, or from a generator's own options, to an engine's settings.

Reads a model's configuration; starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.config.generation import GenerationConfig, VllmEngineConfig
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.infra.assets import resolve_model
from nemo_rl.models.generation.stops import end_tokens
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

_SECTION = "policy.generation.vllm_cfg"
_SET_ELSEWHERE = {
    "model": "policy.model_name",
    "dtype": f"{_SECTION}.precision",
    "max_model_len": "policy.max_total_sequence_length",
    "tensor_parallel_size": f"{_SECTION}.tensor_parallel_size",
    "pipeline_parallel_size": f"{_SECTION}.pipeline_parallel_size",
    "data_parallel_size": "the cluster's places: there is one engine per so many",
    "load_format": f"{_SECTION}.load_format",
    "skip_tokenizer_init": f"{_SECTION}.skip_tokenizer_init",
    "hf_overrides": f"{_SECTION}.hf_overrides",
    "seed": "the run's seed",
    "logprobs_mode": None,
    "worker_extension_cls": None,
    "async_scheduling": None,
    "generation_config": None,
}
"""Arguments that vllm_kwargs may not have -> what decides them; None: never another."""
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class VllmConfig(GenerationConfig):
    """Options of a ``VllmGeneration`` that no recipe stands behind.

    Fields of ``vllm_cfg`` may also be given directly. The weights are the model's own
    until ``update_weights``.

    Example:
        >>> VllmConfig(model_name="m", max_model_len=2048).vllm_cfg.max_model_len
        2048
    """

    backend: str | None = "vllm"
    """Always vllm."""
    vllm_cfg: VllmEngineConfig = Field(
        default_factory=lambda: VllmEngineConfig(load_format="auto")
    )
    """The engine."""

    @model_validator(mode="before")
    @classmethod
    def _engine_options(cls, values: Any) -> Any:
        """Put options of the engine where they belong; weights are read."""
        if not isinstance(values, dict):
            return values
        own = set(GenerationConfig.model_fields)
        names = [n for n in VllmEngineConfig.model_fields if n in values]
        rest = {k: v for k, v in values.items() if k in own or k not in names}
        given = rest.pop("vllm_cfg", None) or {}
        given = given if isinstance(given, dict) else given.to_dict()
        engine = {name: values[name] for name in names if name not in own}
        return {**rest, "vllm_cfg": {"load_format": "auto", **engine, **given}}


def settings_of(
    config: Mapping[str, Any] | VllmConfig | VllmSettings,
    tokenizer: Any = None,
    *,
    use_gpus: bool,
) -> VllmSettings:
    """The settings of an engine, from its own options.

    Args:
        config: fields of ``VllmConfig``; settings are handed back as they are.
        tokenizer: supplies the stop token.
        use_gpus: whether the engine's places own GPUs.

    Raises:
        ConfigurationError: no model is named, or an option is unknown or cannot be.
    """
    if isinstance(config, VllmSettings):
        return config
    if not isinstance(config, VllmConfig):
        given = {key: value for key, value in config.items() if value is not None}
        known = [*GenerationConfig.model_fields, *VllmEngineConfig.model_fields]
        for name in given:
            if name not in known:
                raise ConfigurationError(
                    f"VllmConfig has no option {name!r}.{did_you_mean(name, known)}"
                )
        config = VllmConfig.from_mapping(given)
    if config.backend != "vllm":
        raise ConfigurationError(
            f"VllmGeneration needs backend 'vllm', not {config.backend!r}"
        )
    if config.model_name is None:
        raise ConfigurationError("config names no model: set model_name in it.")
    folder = resolve_model(config.model_name)
    longest = config.vllm_cfg.max_model_len
    if longest is None:
        limit = read_hf_config(folder).get("max_position_embeddings")
        longest = min(int(limit or 4096), 4096)
    return _settings(
        config,
        folder,
        tokenizer=tokenizer,
        dtype=config.vllm_cfg.precision or ("bfloat16" if use_gpus else "float32"),
        max_model_len=longest,
        use_gpu=use_gpus,
    )


def settings_of_policy(
    policy: PolicyConfig,
    tokenizer: Any,
    *,
    use_gpus: bool,
    seed: int = 0,
    threads: int = 1,
) -> VllmSettings:
    """The settings of the engines beside a policy.

    Args:
        policy: the policy section.
        tokenizer: supplies the stop token.
        use_gpus: whether the engines' places own GPUs.
        seed: of the first engine.
        threads: CPU threads of each process.
    """
    generation = policy.generation
    longest = policy.max_total_sequence_length
    if (given := generation.vllm_cfg.max_model_len) is not None and given < longest:
        raise ConfigurationError(
            f"policy.generation.vllm_cfg.max_model_len={given} is less than "
            f"policy.max_total_sequence_length={longest}: leave it out."
        )
    folder = resolve_model(policy.model_name)
    words = policy.tokenizer.name
    return _settings(
        generation,
        folder,
        tokenizer=tokenizer,
        dtype=generation.vllm_cfg.precision or policy.precision,
        max_model_len=longest,
        use_gpu=use_gpus,
        more={
            "seed": seed,
            "threads": threads,
            "colocated": generation.colocated.enabled,
            "hf_overrides": {
                **policy.hf_config_overrides,
                **generation.vllm_cfg.hf_overrides,
            },
            "rows_at_once": policy.generation_batch_size,
            "tokenizer": words,
            # Environments may end the responses of single rows with strings.
            "strings_of_rows": words is not None or any(folder.glob("tokenizer*")),
        },
    )


def _settings(
    generation: GenerationConfig,
    folder: Path,
    *,
    tokenizer: Any,
    dtype: str,
    max_model_len: int,
    use_gpu: bool,
    more: Mapping[str, Any] | None = None,
) -> VllmSettings:
    engine = generation.vllm_cfg
    ids, strings = generation.stop_token_ids, generation.stop_strings
    if ids is None:
        ids = list(end_tokens(tokenizer, folder))
    if generation.ignore_eos:
        ids, strings = [], []
    _check_arguments(generation.vllm_kwargs)
    given: dict[str, Any] = dict(more or {})
    arguments = dict(generation.vllm_kwargs)
    of_rows = given.pop("strings_of_rows", False)
    if (rows := given.pop("rows_at_once", None)) is not None:
        arguments.setdefault("max_num_seqs", rows)
    fields: dict[str, Any] = {"hf_overrides": dict(engine.hf_overrides), **given}
    return VllmSettings(
        model=str(folder),
        dtype=dtype,
        max_model_len=max_model_len,
        max_new_tokens=generation.max_new_tokens,
        use_gpu=use_gpu,
        tensor_parallel=engine.tensor_parallel_size,
        pipeline_parallel=engine.pipeline_parallel_size,
        expert_parallel=engine.expert_parallel_size > 1,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        stop_token_ids=tuple(ids),
        stop_strings=tuple(strings or ()),
        load_format=engine.load_format,
        with_tokenizer=bool(strings) or of_rows or not engine.skip_tokenizer_init,
        async_engine=engine.async_engine,
        enforce_eager=engine.enforce_eager,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_dtype=engine.kv_cache_dtype,
        kv_bytes_per_token=_kv_bytes_per_token(folder, dtype),
        more=arguments,
        **fields,
    )


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if name in _SET_ELSEWHERE:
            instead = _SET_ELSEWHERE[name]
            raise ConfigurationError(
                f"policy.generation.vllm_kwargs.{name} cannot be set: "
                + (f"set {instead}." if instead else "training relies on its value.")
            )


def _kv_bytes_per_token(folder: Path, dtype: str) -> int | None:
    """Bytes of keys and values of one token; None for a model of another shape."""
    config = read_hf_config(folder)
    config = config.get("text_config") or config
    heads = config.get("num_attention_heads")
    if not heads or "num_hidden_layers" not in config or "hidden_size" not in config:
        return None
    width = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    per_layer = 2 * kv_heads * width * _ITEM_BYTES.get(dtype, 4)
    return config["num_hidden_layers"] * per_layer
