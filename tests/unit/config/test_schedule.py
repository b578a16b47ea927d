"""The learning rate against torch.optim.lr_scheduler, step by step."""

import warnings

import pytest

from nemo_rl.config.optimizer import SchedulerConfig
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.config.schedule import learning_rate_at

LR = "torch.optim.lr_scheduler."


def entries(*phases: dict) -> list[SchedulerConfig]:
    return [SchedulerConfig(**phase) for phase in phases]


WARMUP = {"name": LR + "LinearLR", "kwargs": {"start_factor": 0.1, "total_iters": 5}}
COSINE = {"name": LR + "CosineAnnealingLR", "kwargs": {"T_max": 10, "eta_min": 1e-4}}
CONSTANT = {"name": LR + "ConstantLR", "kwargs": {"factor": 0.5, "total_iters": 4}}


@pytest.mark.parametrize(
    ("phases", "milestones"),
    [
        ([WARMUP], None),
        ([COSINE], None),
        ([CONSTANT], None),
        ([WARMUP, COSINE], [5]),
        ([WARMUP, CONSTANT, COSINE], [3, 8]),
    ],
)
def test_same_as_torch(phases: list[dict], milestones: list[int] | None) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    made = [
        getattr(torch.optim.lr_scheduler, p["name"].rpartition(".")[2])(
            optimizer, **p["kwargs"]
        )
        for p in phases
    ]
    theirs = made[0]
    config = entries(*phases)
    if milestones:
        theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, made, milestones)
        config += entries({"milestones": milestones})
    for step in range(10):
        ours = learning_rate_at(step, 0.01, config)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.step()


def test_none_is_constant() -> None:
    assert learning_rate_at(7, 0.3, None) == 0.3


def test_without_milestones_phases_multiply() -> None:
    config = entries(CONSTANT, WARMUP)
    assert learning_rate_at(0, 1.0, config) == pytest.approx(0.05)


def test_milestones_must_match() -> None:
    with pytest.raises(ValueError, match="has 1 milestones for 1 phases; expected 0"):
        PolicyConfig(model_name="m", scheduler=[WARMUP, {"milestones": [3]}])


def megatron(**scheduler: object) -> PolicyConfig:
    return PolicyConfig(
        model_name="m",
        learning_rate=1e-2,
        megatron_cfg={"scheduler": scheduler, "optimizer": {"min_lr": 1e-3}},
    )


def rates(policy: PolicyConfig, *steps: int) -> list[float]:
    lr = policy.optimizer.kwargs.lr
    return [learning_rate_at(step, lr, policy.scheduler) for step in steps]


def test_megatron_warmup_then_constant() -> None:
    policy = megatron(lr_warmup_iters=10, lr_warmup_init=1e-3)
    assert rates(policy, 0, 10, 11, 500) == pytest.approx([1e-3, 1e-2, 1e-2, 1e-2])


def test_megatron_decay() -> None:
    linear = megatron(lr_decay_style="linear", lr_decay_iters=20, lr_warmup_iters=10)
    assert rates(linear, 0, 10, 15, 20, 30) == pytest.approx(
        [0.0, 1e-2, 5.5e-3, 1e-3, 1e-3]
    )
    cosine = megatron(lr_decay_style="cosine", lr_decay_iters=10)
    assert rates(cosine, 0, 5, 10, 15, 900) == pytest.approx(
        [1e-2, 5.5e-3, 1e-3, 1e-3, 1e-3]
    )


def test_megatron_constant_without_warmup_needs_no_schedule() -> None:
    assert megatron().scheduler is None


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"start_weight_decay": 0.5}, "weight decay stays the same"),
        (
            {"lr_decay_style": "linear", "lr_decay_iters": 5, "lr_warmup_iters": 5},
            "lr_decay_iters=5 must exceed lr_warmup_iters=5",
        ),
        ({"lr_decay_style": "cosine"}, "lr_decay_style='cosine' needs lr_decay_iters"),
    ],
)
def test_megatron_schedules_that_cannot_be(scheduler: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        megatron(**scheduler)


def test_own_schedule_wins_over_megatrons() -> None:
    policy = PolicyConfig(
        model_name="m",
        scheduler=[WARMUP],
        megatron_cfg={"scheduler": {"lr_warmup_iters": 3}},
    )
    assert [phase.kind for phase in policy.scheduler or []] == ["LinearLR"]
