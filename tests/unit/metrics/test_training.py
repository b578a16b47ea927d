"""Divergences against numbers computed by hand; masked tokens change nothing."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from nemo_rl.metrics.training import (  # noqa: E402
    kl_to_reference,
    logprob_metrics,
    update_metrics,
)

MASK = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
ZERO = torch.zeros(2, 4)


def shifted(*values: float) -> torch.Tensor:
    """Log-probs with the values on the three masked tokens."""
    result = torch.zeros(2, 4)
    result[0, 2], result[0, 3], result[1, 1] = values
    return result


def test_equal_log_probs_are_perfect():
    metrics = logprob_metrics(shifted(-1, -2, -3), shifted(-1, -2, -3), MASK)
    assert metrics == {
        "token_mult_prob_error": 1.0,
        "token_mult_prob_error_max": 1.0,
        "gen_kl_error": 0.0,
        "policy_kl_error": 0.0,
        "js_divergence_error": pytest.approx(0.0, abs=1e-7),
        "sampling_importance_ratio": 1.0,
    }


def test_against_hand_computed_numbers():
    differences = [0.1, -0.2, 0.3]
    metrics = logprob_metrics(shifted(*differences), ZERO, MASK)
    ratios = [math.exp(d) for d in differences]

    def mean(values):
        return pytest.approx(sum(values) / 3, rel=1e-5)

    pairs = list(zip(ratios, differences, strict=True))
    assert metrics["token_mult_prob_error"] == mean(
        [math.exp(abs(d)) for d in differences]
    )
    assert metrics["token_mult_prob_error_max"] == pytest.approx(math.exp(0.3))
    assert metrics["gen_kl_error"] == mean([r - 1 - d for r, d in pairs])
    assert metrics["policy_kl_error"] == mean([r * d - (r - 1) for r, d in pairs])
    assert metrics["js_divergence_error"] == mean(
        [
            0.5 * (r * (d - math.log((1 + r) / 2)) - math.log((1 + r) / 2))
            for r, d in pairs
        ]
    )
    assert metrics["sampling_importance_ratio"] == mean(ratios)


def test_divergences_of_whole_distributions_are_recovered():
    """Weighted by the generator's probabilities, the estimates are the divergences."""
    generator = torch.tensor([0.5, 0.3, 0.2])
    trainer = torch.tensor([0.4, 0.4, 0.2])
    # 10 tokens sampled exactly in the generator's proportions.
    tokens = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    logs = [
        torch.cat([torch.zeros(1), p.log()[tokens]])[None] for p in (trainer, generator)
    ]
    mask = torch.ones(1, 11)
    metrics = logprob_metrics(*logs, mask)

    def kl(p, q):
        return float((p * (p / q).log()).sum())

    middle = (generator + trainer) / 2
    assert metrics["gen_kl_error"] == pytest.approx(kl(generator, trainer), abs=1e-6)
    assert metrics["policy_kl_error"] == pytest.approx(kl(trainer, generator), abs=1e-6)
    js = 0.5 * (kl(generator, middle) + kl(trainer, middle))
    assert metrics["js_divergence_error"] == pytest.approx(js, abs=1e-6)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e9])
def test_masked_tokens_change_nothing(poison):
    clean = shifted(0.1, -0.2, 0.3)
    dirty = torch.where(MASK > 0, clean, torch.full_like(clean, poison))
    assert logprob_metrics(dirty, ZERO, MASK) == logprob_metrics(clean, ZERO, MASK)


def test_sample_mask_removes_a_completion():
    sample_mask = torch.tensor([1.0, 0.0])
    metrics = logprob_metrics(shifted(0.1, 0.1, 5.0), ZERO, MASK, sample_mask)
    assert metrics["sampling_importance_ratio"] == pytest.approx(math.exp(0.1))
    assert metrics["token_mult_prob_error_max"] == pytest.approx(math.exp(0.1))


def test_an_empty_mask_is_finite():
    for metrics in (
        logprob_metrics(ZERO, ZERO, ZERO),
        update_metrics(ZERO, ZERO, ZERO, ratio_clip_min=0.2, ratio_clip_max=0.2),
    ):
        assert all(math.isfinite(value) for value in metrics.values())


def test_a_huge_difference_stays_finite():
    metrics = logprob_metrics(shifted(-1000.0, 0.0, 0.0), ZERO, MASK)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["token_mult_prob_error"] > 1e6


def test_update_metrics_count_what_is_outside_the_clip_range():
    curr = shifted(math.log(1.1), math.log(1.5), math.log(0.5))
    metrics = update_metrics(curr, ZERO, MASK, ratio_clip_min=0.2, ratio_clip_max=0.28)
    assert metrics["clip_fraction"] == pytest.approx(2 / 3)
    assert metrics["probs_ratio"] == pytest.approx(3.1 / 3)
    assert metrics["probs_ratio_max"] == pytest.approx(1.5)
    assert metrics["probs_ratio_min"] == pytest.approx(0.5)
    expected = sum(r - 1 - math.log(r) for r in (1.1, 1.5, 0.5)) / 3
    assert metrics["approx_kl"] == pytest.approx(expected, rel=1e-5)


def test_kl_to_reference_is_k3():
    reference = shifted(0.1, -0.2, 0.0)
    expected = sum(math.exp(r) - 1 - r for r in (0.1, -0.2, 0.0)) / 3
    assert kl_to_reference(ZERO, reference, MASK) == pytest.approx(expected, rel=1e-4)
