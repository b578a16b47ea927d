"""grpo.async_grpo: what cannot be is refused with what to change."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_rl.algorithms.grpo.async_config import AsyncGRPOConfig
from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.config.base import merge
from nemo_rl.utils.exceptions import ConfigurationError

RECIPE = {
    "policy": {
        "model_name": "m",
        "generation": {
            "backend": "vllm",
            "colocated": {"enabled": False, "resources": {"cpu_workers_per_node": 1}},
        },
    },
    "grpo": {"async_grpo": {"enabled": True}},
    "loss_fn": {"use_importance_sampling_correction": True},
    "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 2},
}


def recipe(**changes: Any) -> GRPOMasterConfig:
    return GRPOMasterConfig.from_mapping(merge(RECIPE, changes))


def ahead(**values: Any) -> dict[str, Any]:
    return {"grpo": {"async_grpo": values}}


SHARED = {"policy": {"generation": {"backend": None, "colocated": {"enabled": True}}}}


def test_a_whole_recipe_and_what_it_means() -> None:
    section = recipe().grpo.async_grpo
    assert section.max_staleness_steps == 1 and section.samples_ahead
    assert not recipe(**ahead(max_staleness_steps=0)).grpo.async_grpo.samples_ahead
    assert not recipe(**ahead(enabled=False)).grpo.async_grpo.samples_ahead
    both = ahead(max_staleness_steps=0, over_sampling=1.5)
    assert recipe(**both).grpo.async_grpo.samples_ahead


def test_without_staleness_anything_generates() -> None:
    changes = merge(SHARED, ahead(max_staleness_steps=0))
    changes["loss_fn"] = {"use_importance_sampling_correction": False}
    assert recipe(**changes).grpo.async_grpo.enabled


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (SHARED, "policy.generation.colocated.enabled=true.*set that to false"),
        (
            {"loss_fn": {"use_importance_sampling_correction": False}},
            "max_staleness_steps=1 trains on responses of earlier weights: set "
            "loss_fn.use_importance_sampling_correction to true",
        ),
        (
            {"grpo": {"use_dynamic_sampling": True}},
            "use_dynamic_sampling=true draws as many prompts",
        ),
        (
            {"grpo": {"max_rollout_turns": 2, "async_grpo": {"over_sampling": 1.5}}},
            "over_sampling=1.5 goes on with responses.*max_rollout_turns=2",
        ),
    ],
)
def test_what_other_sections_do_not_allow(changes, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deterministic": True, "over_sampling": 1.5}, "which deterministic=true"),
        (
            {"deterministic": True, "in_flight_weight_updates": True},
            "which deterministic=true forbids",
        ),
        (
            {"recompute_kv_cache_after_weight_updates": True},
            "without in_flight_weight_updates",
        ),
        (
            {"max_trajectory_age_steps": 2, "max_staleness_steps": 1},
            "two names of one number",
        ),
    ],
)
def test_what_excludes_one_another(values, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        AsyncGRPOConfig(**values)


def test_the_name_that_other_recipes_use() -> None:
    config = AsyncGRPOConfig.from_mapping({"max_trajectory_age_steps": 3})
    assert config.max_staleness_steps == 3
