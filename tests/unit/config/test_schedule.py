"""The learning rate against torch.optim.lr_scheduler, step by step."""

import itertools
import warnings

import pytest

from nemo_rl.config.optimizer import SchedulerConfig
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.config.schedule import learning_rate_at

LR = "torch.optim.lr_scheduler."


def entries(*phases: dict) -> list[SchedulerConfig]:
    return [SchedulerConfig(**phase) for phase in phases]


WARMUP = {"name": LR + "LinearLR", "kwargs": {"start_factor": 0.1, "total_iters": 5}}
DEFAULTS = {"name": LR + "LinearLR"}
DECAY = {
    "name": LR + "LinearLR",
    "kwargs": {"start_factor": 1.0, "end_factor": 0.1, "total_iters": 4},
}
COSINE = {"name": LR + "CosineAnnealingLR", "kwargs": {"T_max": 10, "eta_min": 1e-4}}
TO_ZERO = {"name": LR + "CosineAnnealingLR", "kwargs": {"T_max": 6}}
CONSTANT = {"name": LR + "ConstantLR", "kwargs": {"factor": 0.5, "total_iters": 4}}
FLAT = {"name": LR + "ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 0}}
PHASES = [WARMUP, DEFAULTS, DECAY, COSINE, TO_ZERO, CONSTANT, FLAT]


def torch_rates(
    phases: list[dict], milestones: list[int] | None, steps: int
) -> list[float]:
    """The learning rates of torch's own schedulers."""
    import torch

    schedulers = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    made = [
        getattr(schedulers, phase["name"].rpartition(".")[2])(
            optimizer, **phase.get("kwargs", {})
        )
        for phase in phases
    ]
    if milestones:
        made = [schedulers.SequentialLR(optimizer, made, milestones)]
    elif len(made) > 1:
        made = [schedulers.ChainedScheduler(made)]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made[0].step()
    return rates


def our_rates(
    phases: list[dict], milestones: list[int] | None, steps: int
) -> list[float]:
    end = [{"milestones": milestones}] if milestones else []
    policy = PolicyConfig(model_name="m", scheduler=[*phases, *end])
    return [learning_rate_at(step, 0.01, policy.scheduler) for step in range(steps)]


@pytest.mark.parametrize(
    ("phases", "milestones"),
    [
        *(([phase], None) for phase in PHASES),
        *(([a, b], [4]) for a, b in itertools.product(PHASES, PHASES)),
        ([WARMUP, CONSTANT, COSINE], [3, 8]),
        *(([a, b], None) for a, b in itertools.product(PHASES[:3], PHASES[:3])),
        ([WARMUP, CONSTANT, FLAT], None),
        *(([phase, TO_ZERO], None) for phase in (WARMUP, DEFAULTS, CONSTANT, FLAT)),
        ([TO_ZERO, WARMUP], None),
    ],
)
def test_same_as_torch(phases: list[dict], milestones: list[int] | None) -> None:
    expected = torch_rates(phases, milestones, 20)
    assert our_rates(phases, milestones, 20) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "phases", [[WARMUP, COSINE], [DECAY, TO_ZERO], [TO_ZERO, TO_ZERO]]
)
def test_a_product_that_torch_does_not_make_is_refused(phases: list[dict]) -> None:
    with pytest.raises(ValueError, match="multiplies a cosine .* entry with mileston"):
        our_rates(phases, None, 1)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        ("LinearLR", {"total_iters": 0}, "total_iters=0 must be at least 1"),
        ("LinearLR", {"total_iters": 2.5}, "total_iters=2.5 must be a whole number"),
        ("LinearLR", {"start_factor": 1.5}, "start_factor=1.5 must be from 0 to 1"),
        ("ConstantLR", {"factor": "half"}, "factor='half' must be a number"),
        ("CosineAnnealingLR", {"T_max": 0}, "T_max=0 must be at least 1"),
        ("CosineAnnealingLR", {"T_max": 5, "eta_min": -1}, "eta_min=-1 must be at"),
    ],
)
def test_arguments_that_cannot_be(kind: str, kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SchedulerConfig(name=LR + kind, kwargs=kwargs)


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
