"""The policy section: where a setting may stand, and where it ends up."""

import pytest

from nemo_rl.config.policy import PolicyConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_defaults_of_the_reference() -> None:
    policy = PolicyConfig(model_name="m")
    assert policy.train_global_batch_size == 512
    assert policy.train_micro_batch_size == 4
    assert policy.max_total_sequence_length == 512
    assert policy.precision == "bfloat16"
    assert policy.max_grad_norm == 1.0
    assert policy.optimizer.kwargs.lr == 1e-6
    assert policy.megatron_cfg.enabled is None and not policy.dtensor_cfg.enabled


@pytest.mark.parametrize("name", ["", "  "])
def test_model_must_be_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^model_name='{name}' is empty"):
        PolicyConfig(model_name=name)


def test_learning_rate_is_short_for_the_optimizers() -> None:
    policy = PolicyConfig(
        model_name="m", learning_rate=3e-5, optimizer={"kwargs": {"eps": 1e-7}}
    )
    assert policy.optimizer.kwargs.lr == 3e-5
    assert policy.optimizer.kwargs.eps == 1e-7
    policy.learning_rate = 1e-4
    assert policy.optimizer.kwargs.lr == 1e-4


def test_null_optimizer_and_single_scheduler() -> None:
    policy = PolicyConfig(
        model_name="m",
        optimizer=None,
        scheduler={"name": "torch.optim.lr_scheduler.LinearLR"},
    )
    assert policy.optimizer.kwargs.weight_decay == 0.01
    assert len(policy.scheduler or []) == 1


def test_megatrons_own_settings_win() -> None:
    policy = PolicyConfig(
        model_name="m",
        max_grad_norm=1.0,
        optimizer={"kwargs": {"lr": 1.0, "betas": [0.5, 0.6]}},
        megatron_cfg={
            "optimizer": {
                "lr": 2.0,
                "weight_decay": 0.3,
                "adam_beta2": 0.7,
                "adam_eps": 1e-5,
                "clip_grad": 0.5,
                "use_distributed_optimizer": False,
            },
            "distributed_data_parallel_config": {"overlap_grad_reduce": True},
        },
    )
    kwargs = policy.optimizer.kwargs
    assert (kwargs.lr, kwargs.weight_decay, kwargs.eps) == (2.0, 0.3, 1e-5)
    assert kwargs.betas == (0.5, 0.7)
    assert policy.max_grad_norm == 0.5
    assert policy.megatron_cfg.use_distributed_optimizer is False
    assert policy.megatron_cfg.overlap_grad_reduce is True
    assert PolicyConfig.from_mapping(policy.to_dict()) == policy


def test_two_learning_rates_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="learning_rate=1.0 and .*2.0 differ"):
        PolicyConfig(
            model_name="m",
            learning_rate=1.0,
            megatron_cfg={"optimizer": {"lr": 2.0}},
        )
