"""The optimizer and scheduler sections."""

import pytest

from nemo_rl.config.optimizer import OptimizerConfig, OptimizerKwargs, SchedulerConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_kwargs_keep_the_defaults_that_are_not_given() -> None:
    kwargs = OptimizerConfig(kwargs={"lr": 0.1}).kwargs
    assert (kwargs["lr"], kwargs["betas"]) == (0.1, (0.9, 0.999))


def test_betas_below_one() -> None:
    with pytest.raises(
        ConfigurationError, match=r"betas=\[0.9, 1.0\] must both lie in"
    ):
        OptimizerKwargs(betas=[0.9, 1.0])


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'torch.optim.SGD' is not one of"):
        OptimizerConfig(name="torch.optim.SGD")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "give either name .* or milestones"),
        ({"name": "LinearLR", "milestones": [1]}, "give either name"),
        ({"name": "torch.optim.lr_scheduler.StepLR"}, "is not one of .*LinearLR"),
        (
            {"name": "LinearLR", "kwargs": {"total_iter": 3}},
            "total_iter is not an argument of LinearLR. Did you mean total_iters?",
        ),
        ({"name": "CosineAnnealingLR"}, "needs kwargs.T_max"),
        ({"milestones": [3, 2]}, r"milestones=\[3, 2\] must ascend"),
        ({"milestones": [2], "kwargs": {"x": 1}}, "without kwargs"),
    ],
)
def test_scheduler_entries_that_cannot_be(entry: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SchedulerConfig(**entry)


def test_kind() -> None:
    assert SchedulerConfig(name="torch.optim.lr_scheduler.LinearLR").kind == "LinearLR"
    assert SchedulerConfig(milestones=[1]).kind == ""
