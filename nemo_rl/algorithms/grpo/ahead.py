"""grpo.async_grpo as options of the source of rollouts; can the policy do that?"""

from __future__ import annotations

from typing import Any

from nemo_rl.algorithms.grpo.async_config import AsyncGRPOConfig
from nemo_rl.experience.schedule import AheadOptions
from nemo_rl.utils.exceptions import ConfigurationError


def options(config: AsyncGRPOConfig) -> AheadOptions:
    """The section as the schedule reads it."""
    return AheadOptions(
        max_staleness=config.max_staleness_steps,
        in_flight=config.in_flight_weight_updates,
        deterministic=config.deterministic,
        over_sampling=config.over_sampling,
        sort_by_length=config.sort_by_length,
    )


def let_run_ahead(policy: Any, config: AsyncGRPOConfig) -> None:
    """Make sure that the policy can generate while it trains, and have it do so.

    Raises:
        ConfigurationError: it generates with the workers that train, or its generator
            takes no single requests, which the section asks for.
    """
    if not policy.generates_apart:
        raise ConfigurationError(
            f"grpo.async_grpo.enabled=true, but {type(policy).__name__} generates with "
            "the workers that train: set policy.generation.backend to 'vllm' and "
            "policy.generation.colocated.enabled to false, or hand over a "
            "PairedPolicy."
        )
    for name, on in (
        ("in_flight_weight_updates=true", config.in_flight_weight_updates),
        (f"over_sampling={config.over_sampling:g}", config.over_sampling > 1),
    ):
        if on and policy.stream is None:
            raise ConfigurationError(
                f"grpo.async_grpo.{name} needs a generator that takes single requests "
                "at any time (a GenerationStream, such as backend 'vllm'); the "
                "generator of this policy answers whole batches. Leave the key out."
            )
    synced = getattr(policy, "synced", None)
    if synced is not None:
        synced.follows = False
        synced.recompute_cache = config.recompute_kv_cache_after_weight_updates
