"""The Bradley-Terry loss against closed forms and numbers worked out by hand."""

import math

import pytest
import torch

from nemo_rl.algorithms.rm.config import RMConfig
from nemo_rl.algorithms.rm.loss import BradleyTerryLossFn
from nemo_rl.backends.training.base import ModelOutput, rows_per_sample
from nemo_rl.utils.exceptions import ConfigurationError


def value(scores, counts=(1.0, 1.0), seqs=None, **config):
    batch = {
        "sample_mask": torch.tensor(counts),
        "global_valid_seqs": torch.tensor(float(sum(counts)) if seqs is None else seqs),
    }
    nothing = torch.full((len(scores), 3), torch.nan)
    output = ModelOutput(nothing, scores=scores)
    return BradleyTerryLossFn(RMConfig(**config))(batch, output)


def test_equal_scores_are_ln_2():
    loss, metrics = value(torch.tensor([0.3, 0.3]))
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics["accuracy"] == 0


def test_equation_1_and_its_gradient():
    scores = torch.tensor([2.0, -1.0], requires_grad=True)
    loss, metrics = value(scores)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)))
    slope = 1 / (1 + math.exp(3))
    torch.testing.assert_close(scores.grad, torch.tensor([-slope, slope]))
    assert metrics["rewards_margin"] == 3
    assert metrics["accuracy"] == 1


def test_scores_are_kept_around_zero():
    loss, _ = value(torch.tensor([2.0, -1.0]), center_rewards_coefficient=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)) + 0.5)


def test_shares_add_up_and_pairs_that_do_not_count_change_nothing():
    scores = torch.tensor([2.0, -1.0, 0.0, 0.0, 9.0, 0.0])
    counts = (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    whole, _ = value(scores, counts, seqs=4.0)
    expected = (math.log(1 + math.exp(-3)) + math.log(2)) / 2
    assert whole.item() == pytest.approx(expected)
    parts = [
        value(scores[i : i + 2], counts[i : i + 2], seqs=4.0)[0] for i in (0, 2, 4)
    ]
    assert sum(parts).item() == pytest.approx(expected)


def test_a_language_model_has_no_score():
    assert rows_per_sample(BradleyTerryLossFn()) == 2
    with pytest.raises(ConfigurationError, match="gives no scores"):
        BradleyTerryLossFn()({}, ModelOutput(torch.zeros(2, 3)))
