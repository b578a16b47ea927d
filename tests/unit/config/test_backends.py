"""Which engines a recipe chooses, what their sections say of the layout."""

from typing import Any

import pytest

from nemo_rl.config import backends
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.utils.exceptions import ConfigurationError


def policy(**section: Any) -> PolicyConfig:
    return PolicyConfig.from_mapping({"model_name": "m", **section})


DTENSOR = {"enabled": True, "tensor_parallel_size": 2, "env_vars": {"A": "1"}}


@pytest.mark.parametrize(
    ("section", "training", "generation"),
    [
        ({}, "megatron", "megatron"),
        ({"megatron_cfg": {"enabled": True}}, "megatron", "megatron"),
        ({"training_backend": "megatron"}, "megatron", "megatron"),
        ({"dtensor_cfg": DTENSOR}, "dtensor", "hf"),
        (
            {"dtensor_cfg": DTENSOR, "megatron_cfg": {"enabled": False}},
            "dtensor",
            "hf",
        ),
        ({"training_backend": "dtensor"}, "dtensor", "hf"),
        ({"training_backend": "mine:Engine"}, "mine:Engine", ""),
        (
            {"training_backend": "m:E", "generation": {"backend": "m:G"}},
            "m:E",
            "m:G",
        ),
    ],
)
def test_one_of_each_is_chosen(section: dict, training: str, generation: str) -> None:
    config = policy(**section)
    assert backends.training_backend(config) == training
    assert backends.generation_backend(config) == generation
    assert policy(**config.to_dict() | section).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"dtensor_cfg": DTENSOR, "megatron_cfg": {"enabled": True}},
            r"dtensor_cfg.enabled and megatron_cfg.enabled choose .*set "
            r"megatron_cfg.enabled to false",
        ),
        (
            {"dtensor_cfg": DTENSOR, "training_backend": "megatron"},
            "training_backend='megatron' and dtensor_cfg.enabled choose",
        ),
        ({"megatron_cfg": {"enabled": False}}, "no other training backend is on"),
        (
            {
                "dtensor_cfg": DTENSOR,
                "megatron_cfg": {"tensor_model_parallel_size": 2},
            },
            "tensor_model_parallel_size=2, but .* Set dtensor_cfg.tensor_parallel_size",
        ),
        (
            {
                "training_backend": "m:E",
                "megatron_cfg": {"pipeline_model_parallel_size": 2},
            },
            "pipeline_model_parallel_size=2, but .* Set it to 1",
        ),
        ({"generation": {"backend": "hf"}}, "of the 'dtensor' .* set it to 'megatron'"),
        (
            {"dtensor_cfg": DTENSOR, "generation": {"backend": "megatron"}},
            "set it to 'hf', or leave it out",
        ),
        (
            {"training_backend": "m:E", "generation": {"backend": "hf"}},
            "set it to a 'module:Class' of yours",
        ),
        ({"training_backend": "dtenser"}, "Did you mean dtensor"),
        (
            {"dtensor_cfg": DTENSOR, "reward_model_cfg": {"enabled": True}},
            "reward models are trained by Megatron: set dtensor_cfg.enabled to false",
        ),
    ],
)
def test_a_choice_that_cannot_be_says_what_to_change(
    section: dict, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        policy(**section)


def test_sizes_come_from_the_section_of_the_engine_that_is_on() -> None:
    both = {
        "megatron_cfg": {
            "enabled": False,
            "tensor_model_parallel_size": 4,
            "env_vars": {"B": "2"},
        }
    }
    config = policy(dtensor_cfg=DTENSOR, **both)
    dims = backends.parallel_dims(config, 8)
    assert (dims.tp, dims.pp, dims.dp) == (2, 1, 4)
    assert backends.worker_env(config) == {"A": "1"}
    key = backends.tensor_parallel_key(config)
    assert key == "policy.dtensor_cfg.tensor_parallel_size"
    megatron = policy(megatron_cfg={"pipeline_model_parallel_size": 2})
    assert backends.parallel_dims(megatron, 8).dp == 4
    own = policy(training_backend="m:E")
    assert backends.parallel_dims(own, 8).dp == 8
    assert backends.worker_env(own) == {}


def test_sizes_are_checked_under_the_key_that_set_them() -> None:
    from nemo_rl.config.validation import validate_model_shape

    config = policy(dtensor_cfg={"enabled": True, "tensor_parallel_size": 3})
    with pytest.raises(ConfigurationError, match="dtensor_cfg.tensor_parallel_size=3"):
        validate_model_shape(config, {"num_attention_heads": 4})


def test_registered_names_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.REGISTERED["training"], "mine", object)
    assert backends.training_backend(policy(training_backend="mine")) == "mine"
