"""Which steps go: best by metric, ties, direction, missing values."""

from __future__ import annotations

import math

import pytest

from nemo_rl.infra.retention import metric_value, numbers, superfluous


@pytest.mark.parametrize(
    ("values", "keep", "higher", "removed"),
    [
        ({1: 0.1, 2: 0.9, 3: 0.5}, 1, True, [1]),
        ({1: 0.1, 2: 0.9, 3: 0.5}, 1, False, [2]),
        ({1: 0.5, 2: 0.5, 3: 0.5, 4: 0.1}, 2, True, [1]),
        ({1: None, 2: 0.5, 3: None, 4: None}, 2, True, [1, 3]),
        ({1: None, 2: None, 3: None}, 2, True, [1]),
        ({1: 0.1, 2: 0.2, 3: 0.3}, 0, True, [1, 2]),
        ({1: 0.1, 2: 0.2, 3: 0.3}, None, True, []),
        ({1: -0.5, 2: None, 3: -0.1, 4: None}, 2, True, [2]),
    ],
)
def test_superfluous(values, keep, higher, removed):
    latest = max(values)
    assert removed == superfluous(
        values, latest=latest, keep_top_k=keep, higher_is_better=higher
    )


def test_the_latest_is_the_one_just_written_not_the_highest_number():
    assert superfluous({20: 0.1, 15: 0.0}, latest=15, keep_top_k=0) == [20]


def test_metric_value_reads_both_spellings_and_refuses_nan():
    assert metric_value({"val:accuracy": 0.5}, "val:accuracy") == 0.5
    assert metric_value({"val/accuracy": 0.5}, "val:accuracy") == 0.5
    assert metric_value({"val/accuracy": math.nan}, "val:accuracy") is None
    assert metric_value({"x": 1.0}, "val:accuracy") is None
    assert metric_value({"x": 1.0}, None) is None


def test_numbers_keeps_what_is_one_number():
    assert numbers({"a": 1, "b": "x", "c": [1], "d": True}) == {"a": 1.0, "d": 1.0}
