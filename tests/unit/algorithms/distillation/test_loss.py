"""The divergences against torch's own and numbers worked out by hand."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from nemo_rl.algorithms.distillation.config import DistillationLossConfig
from nemo_rl.algorithms.distillation.loss import DistillationLossFn, divergences
from nemo_rl.backends.training.base import ModelOutput, teacher_topk
from nemo_rl.utils.exceptions import ConfigurationError


def logs(*probabilities):
    return torch.tensor(probabilities).log()


def value(kl_type, policy, teacher, **config):
    chosen = DistillationLossConfig(kl_type=kl_type, **config)
    return divergences(policy, teacher, chosen)["loss"].item()


def test_equal_distributions_have_no_divergence():
    same = logs(0.5, 0.3, 0.2)
    for kl_type in ("forward", "reverse", "mixed"):
        assert value(kl_type, same, same) == pytest.approx(0, abs=1e-7)


def test_the_whole_vocabulary_gives_the_divergences_themselves():
    policy, teacher = logs(0.5, 0.3, 0.2), logs(0.1, 0.2, 0.7)
    s, t = Categorical(policy.exp()), Categorical(teacher.exp())
    forward, reverse = kl_divergence(t, s).item(), kl_divergence(s, t).item()
    assert value("forward", policy, teacher) == pytest.approx(forward)
    assert value("reverse", policy, teacher) == pytest.approx(reverse)
    mixed = value("mixed", policy, teacher, mixed_kl_weight=0.25)
    assert mixed == pytest.approx(0.25 * forward + 0.75 * reverse)


def test_fewer_tokens_compare_the_choice_among_them():
    # 0.2 : 0.6 and 0.1 : 0.1 of all are 1/4, 3/4 and 1/2, 1/2 of the two.
    policy, teacher = logs(0.1, 0.1), logs(0.2, 0.6)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert value("forward", policy, teacher) == pytest.approx(expected)


def test_what_the_policy_gives_other_tokens_counts_against_it():
    policy, teacher = logs(0.1, 0.1), logs(0.2, 0.6)
    found = value("forward", policy, teacher, zero_outside_topk=True)
    expected = 0.25 * math.log(0.25 / 0.1) + 0.75 * math.log(0.75 / 0.1)
    assert found == pytest.approx(expected)


def batch(teacher, mask):
    return {
        "token_mask": torch.tensor(mask),
        "sample_mask": torch.ones(len(mask)),
        "teacher_logprobs": teacher,
        "global_valid_tokens": torch.tensor(2.0),
    }


def test_tokens_of_the_response_are_averaged_and_others_may_be_anything():
    teacher = logs(0.2, 0.8).expand(1, 4, 2).clone()
    policy = logs(0.5, 0.5).expand(1, 4, 2).clone()
    teacher[0, 1], policy[0, 1] = torch.nan, torch.inf
    policy.requires_grad_()
    output = ModelOutput(torch.zeros(1, 4), topk_logprobs=policy)
    config = DistillationLossConfig(kl_type="forward")
    loss, metrics = DistillationLossFn(config)(batch(teacher, [[0.0, 0, 1, 1]]), output)
    expected = 0.2 * math.log(0.4) + 0.8 * math.log(1.6)
    assert loss.item() == pytest.approx(expected)
    assert metrics["forward_kl"].item() == pytest.approx(expected)
    assert metrics["teacher_topk_probability"].item() == pytest.approx(1.0)
    loss.backward()
    # d/d s of the renormalised forward divergence is softmax(s) - t, half per token.
    assert torch.isfinite(policy.grad).all()
    torch.testing.assert_close(policy.grad[0, 2], torch.tensor([0.15, -0.15]))


def test_how_many_tokens_are_asked_for():
    assert teacher_topk(DistillationLossFn(topk=8)) == 8
    assert teacher_topk(DistillationLossFn(topk=None)) > 10**9
    with pytest.raises(ConfigurationError, match="compares with no teacher"):
        DistillationLossFn()({}, ModelOutput(torch.zeros(1, 2)))
