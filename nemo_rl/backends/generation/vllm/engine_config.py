"""VllmSettings as vLLM's own configuration, refused in words that say what to change.

Imports vLLM when it is called, in the engine's process alone.
"""

from __future__ import annotations

import inspect
from typing import Any

from nemo_rl.backends.generation.vllm.settings import VllmSettings, engine_arguments
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

_LONGEST_REASON = 300


def engine_config(settings: VllmSettings) -> Any:
    """vLLM's VllmConfig of an engine.

    Raises:
        ConfigurationError: vLLM knows no such argument, model or combination.
    """
    from vllm.engine.arg_utils import EngineArgs

    given = engine_arguments(settings)
    known = list(inspect.signature(EngineArgs).parameters)
    for name in given:
        if name not in known:
            raise ConfigurationError(
                f"policy.generation.vllm_kwargs.{name}: vLLM's EngineArgs have no such "
                f"argument.{did_you_mean(name, known)}"
            )
    try:
        config = EngineArgs(**given).create_engine_config()
    except (OSError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"vLLM refuses the model {settings.model} or a setting of "
            f"policy.generation.vllm_cfg or vllm_kwargs: {short_reason(error)}"
        ) from error
    if not settings.use_gpu:
        _check_cpu(settings, config)
    return config


def _check_cpu(settings: VllmSettings, config: Any) -> None:
    """Refuse what vLLM's CPU kernels would fail at in the first step."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    if settings.pipeline_parallel > 1:
        raise ConfigurationError(
            "policy.generation.vllm_cfg.pipeline_parallel_size="
            f"{settings.pipeline_parallel}: vLLM's CPU engine cannot. Set it to 1 and "
            "tensor_parallel_size instead."
        )
    model = config.model_config
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if not model.use_mla and model.get_head_size() not in sizes:
        raise ConfigurationError(
            f"the model {settings.model} has attention heads of "
            f"{model.get_head_size()} channels, and vLLM's CPU attention knows "
            f"{', '.join(map(str, sizes))}: choose another model, or set "
            "policy.generation.backend to 'megatron'."
        )


def short_reason(error: Exception) -> str:
    """What an error of vLLM says, in one line without the values that it lists."""
    listed = getattr(error, "errors", None)
    if callable(listed):  # pydantic's
        text = "; ".join(str(entry["msg"]) for entry in listed())
    else:
        text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    first = first.replace("Value error, ", "") or type(error).__name__
    if len(first) > _LONGEST_REASON:
        first = first[:_LONGEST_REASON].rsplit(" ", 1)[0] + " ..."
    return first
