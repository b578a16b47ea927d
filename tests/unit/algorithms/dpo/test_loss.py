"""The preference loss against closed forms and numbers worked out by hand."""

import math

import pytest
import torch

from nemo_rl.algorithms.dpo.config import DPOConfig
from nemo_rl.algorithms.dpo.loss import DPOLossFn, pair_values
from nemo_rl.backends.training.base import ModelOutput, rows_per_sample

MASK = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 0]])
POLICY = torch.tensor([[0.0, -9, -1, -2], [0, -9, -4, -9]])
REFERENCE = torch.tensor([[0.0, -9, -2, -3], [0, -9, -3, -9]])
# Log-ratios: chosen (-3) - (-5) = 2, rejected (-4) - (-3) = -1; their difference is 3.


def batch(reference=REFERENCE, mask=MASK, counts=(1.0, 1.0), seqs=2.0):
    return {
        "token_mask": mask,
        "sample_mask": torch.tensor(counts),
        "reference_policy_logprobs": reference,
        "global_valid_seqs": torch.tensor(seqs),
    }


def value(batch, logprobs=POLICY, **config):
    return DPOLossFn(DPOConfig(**config))(batch, ModelOutput(logprobs))


def test_policy_equal_to_reference_is_ln_2():
    loss, metrics = value(batch(reference=POLICY))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["rewards_margin"] == 0
    assert metrics["accuracy"] == 0


def test_equation_7():
    loss, metrics = value(batch(), beta=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5 * 3)))
    assert metrics["rewards_chosen"].item() == pytest.approx(1.0)
    assert metrics["rewards_rejected"].item() == pytest.approx(-0.5)
    assert metrics["accuracy"] == 1


def test_label_smoothing_is_the_mean_of_both_readings():
    loss, _ = value(batch(), beta=0.5, label_smoothing=0.2)
    right, wrong = (math.log(1 + math.exp(sign * 1.5)) for sign in (-1, 1))
    assert loss.item() == pytest.approx(0.8 * right + 0.2 * wrong)


def test_averages_divide_by_the_length_of_the_answer():
    # Chosen 2 / 2 tokens, rejected -1 / 1: a difference of 2.
    loss, _ = value(batch(), beta=1.0, preference_average_log_probs=True)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize(("average", "nll"), [(False, 3.0), (True, 1.5)])
def test_the_likelihood_term(average, nll):
    loss, metrics = value(
        batch(),
        preference_loss_weight=0.0,
        sft_loss_weight=2.0,
        sft_average_log_probs=average,
    )
    assert loss.item() == pytest.approx(2 * nll)
    assert metrics["sft_loss"].item() == pytest.approx(nll)


def test_gradient_is_equation_8():
    # d loss / d (difference of log-ratios) = -beta sigmoid(-3 beta), on answers alone.
    logprobs = POLICY.clone().requires_grad_()
    value(batch(), logprobs, beta=0.5)[0].backward()
    slope = 0.5 / (1 + math.exp(1.5))
    expected = torch.tensor([[0.0, 0, -slope, -slope], [0, 0, slope, 0]])
    torch.testing.assert_close(logprobs.grad, expected)


def test_pairs_are_means_of_the_global_batch_and_shares_add_up():
    four = {
        "token_mask": MASK.repeat(2, 1),
        "sample_mask": torch.ones(4),
        "reference_policy_logprobs": torch.cat([REFERENCE, POLICY]),
        "global_valid_seqs": torch.tensor(4.0),
    }
    whole, _ = value(four, POLICY.repeat(2, 1), beta=0.5)
    parts = [
        value({k: v[i : i + 2] if v.dim() else v for k, v in four.items()}, beta=0.5)[0]
        for i in (0, 2)
    ]
    assert whole.item() == pytest.approx(
        (math.log(1 + math.exp(-1.5)) + math.log(2)) / 2
    )
    assert sum(parts).item() == pytest.approx(whole.item())


def test_a_pair_with_one_row_left_out_does_not_count():
    logprobs = POLICY.clone().requires_grad_()
    loss, metrics = value(batch(counts=(1.0, 0.0), seqs=1.0), logprobs)
    loss.backward()
    assert loss.item() == 0
    assert metrics["accuracy"] == 0
    assert not logprobs.grad.any()


def test_masked_values_may_be_anything():
    broken = torch.where(MASK > 0, POLICY, torch.nan)
    clean, _ = value(batch())
    dirty, _ = value(
        batch(reference=torch.where(MASK > 0, REFERENCE, torch.inf)), broken
    )
    assert clean.item() == dirty.item()


def test_rows_of_a_pair_stay_together():
    assert rows_per_sample(DPOLossFn()) == 2
    values = pair_values(batch(), POLICY, DPOConfig())
    assert {v.shape for v in values.values()} == {(1,)}
