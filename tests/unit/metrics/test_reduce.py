"""Sums, weighted means, extremes with sentinels, NaN that stays visible."""

from __future__ import annotations

import math

import pytest

from nemo_rl.metrics.reduce import reduce_metrics, rule_of


def test_the_name_tells_the_rule():
    names = {
        "num_tokens": "sum",
        "train/total_valid_tokens": "sum",
        "loss_sum": "sum",
        "probs_ratio_max": "max",
        "min_reward": "min",
        "loss": "mean",
        "minutes": "mean",
    }
    assert {name: rule_of(name) for name in names} == names


def test_means_are_weighted_and_the_rest_is_not():
    parts = [
        {"loss": 1.0, "num_tokens": 10, "ratio_max": 3.0, "ratio_min": 0.5},
        {"loss": 4.0, "num_tokens": 30, "ratio_max": 2.0, "ratio_min": 0.25},
    ]
    assert reduce_metrics(parts, weights=[10, 30]) == {
        "loss": 3.25,
        "num_tokens": 40.0,
        "ratio_max": 3.0,
        "ratio_min": 0.25,
    }
    assert reduce_metrics(parts)["loss"] == 2.5


def test_a_rank_without_tokens_changes_nothing():
    full = {"loss": 2.0, "ratio_max": 3.0, "ratio_min": 0.5}
    empty = {"loss": 0.0, "ratio_max": -math.inf, "ratio_min": math.inf}
    assert reduce_metrics([full, empty], weights=[7, 0]) == full
    assert reduce_metrics([empty, empty], weights=[0, 0]) == {}


def test_a_true_infinity_is_kept():
    assert reduce_metrics([{"a_max": math.inf}, {"a_max": 1.0}]) == {"a_max": math.inf}


@pytest.mark.parametrize("name", ["loss", "loss_max", "loss_min", "loss_sum"])
def test_nan_stays_visible_on_every_rank_order(name):
    for values in ([math.nan, 1.0], [1.0, math.nan]):
        reduced = reduce_metrics([{name: value} for value in values])
        assert math.isnan(reduced[name])


def test_a_name_that_only_some_have():
    parts = [{"a": 1.0}, {"a": 3.0, "b": 5.0}]
    assert reduce_metrics(parts, weights=[3, 1]) == {"a": 1.5, "b": 5.0}


def test_rules_can_be_given():
    parts = [{"lr": 1.0}, {"lr": 2.0}]
    assert reduce_metrics(parts, rules={"lr": "max"}) == {"lr": 2.0}
    with pytest.raises(ValueError, match="'median' is no rule to reduce lr"):
        reduce_metrics(parts, rules={"lr": "median"})


def test_weights_are_checked():
    with pytest.raises(ValueError, match="1 weights for 2 parts"):
        reduce_metrics([{}, {}], weights=[1])
    with pytest.raises(ValueError, match="must not be negative"):
        reduce_metrics([{}], weights=[-1])


def test_splitting_the_parts_does_not_change_the_result():
    parts = [{"loss": value} for value in (0.1, 0.7, 0.4, 0.9)]
    weights = [3.0, 1.0, 4.0, 2.0]
    whole = reduce_metrics(parts, weights=weights)
    halves = [
        reduce_metrics(parts[:2], weights=weights[:2]),
        reduce_metrics(parts[2:], weights=weights[2:]),
    ]
    again = reduce_metrics(halves, weights=[4.0, 6.0])
    assert again["loss"] == pytest.approx(whole["loss"], abs=1e-15)
