"""Tensor-parallel plans: built in, of one's own, and what is refused."""

from __future__ import annotations

import pytest
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from nemo_rl.backends.training.dtensor.plans import (
    SumGradients,
    plan_for,
    summed_parameters,
)
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models

MLP = {
    "model.layers.*.mlp.up_proj": ColwiseParallel(),
    "model.layers.*.mlp.gate_proj": ColwiseParallel(),
    "model.layers.*.mlp.down_proj": RowwiseParallel(),
}
"""A plan of one's own: attention stays whole."""
NO_PLAN = {"model.layers.*.mlp.up_proj": "colwise"}


def of_layers(model):
    """A function of the model, which divides its first layer alone."""
    return {name.replace("*", "0"): style for name, style in MLP.items()}


def missing(model):
    return {"model.layers.*.feed_forward": ColwiseParallel()}


@pytest.fixture(scope="module")
def qwen3():
    return models.build(models.tiny_config("qwen3", layers=2))


def test_norms_of_heads_sum_their_gradients(qwen3):
    plan = plan_for(qwen3, None)
    assert isinstance(plan["model.layers.*.self_attn.o_proj"], RowwiseParallel)
    assert summed_parameters(qwen3, plan) == {
        f"model.layers.{layer}.self_attn.{norm}.weight"
        for layer in range(2)
        for norm in ("q_norm", "k_norm")
    }
    llama = models.build(models.tiny_config("llama", layers=2))
    styles = plan_for(llama, None).values()
    assert len(styles) == 7 and not any(isinstance(s, SumGradients) for s in styles)


def test_a_plan_of_ones_own_is_a_dict_or_a_function(qwen3):
    assert plan_for(qwen3, f"{__name__}:MLP") is MLP
    plan = plan_for(qwen3, f"{__name__}:of_layers")
    assert "model.layers.0.mlp.down_proj" in plan


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("NO_PLAN", "custom_parallel_plan=.*NO_PLAN' is not a plan: expected a dict"),
        ("missing", r"names 'model.layers.\*.feed_forward', but the model has no such"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(qwen3, path, message):
    with pytest.raises(ConfigurationError, match=message):
        plan_for(qwen3, f"{__name__}:{path}")


def test_a_family_without_a_plan_says_what_to_do():
    gemma = models.build(models.tiny_config("gemma2", layers=2))
    with pytest.raises(ConfigurationError, match="no plan for model_type='gemma2'"):
        plan_for(gemma, None)
