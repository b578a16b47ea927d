"""Numbers worked out by hand, textbook intervals, and coverage by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nemo_rl.evals.statistics import (
    PromptScores,
    interval,
    majority,
    summarise,
    wilson,
)


def scores(right: str) -> PromptScores:
    marks = [mark == "y" for mark in right]
    return PromptScores([float(mark) for mark in marks], marks, marks)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer() -> None:
    found = summarise(
        [scores("yynnn"), scores("nnnnn")], [1, 3, 5], confidence=0.95, seed=0
    )
    subsets = list(itertools.combinations("yynnn", 3))
    by_hand = sum("y" in subset for subset in subsets) / len(subsets)
    assert found["pass@1"].value == pytest.approx(0.4 / 2)
    assert found["pass@3"].value == pytest.approx(by_hand / 2)
    assert found["pass@5"].value == 0.5 and found["pass@5"].method == "wilson"
    assert list(found) == ["reward", "pass@1", "pass@3", "pass@5", "cons@3", "cons@5"]


@pytest.mark.parametrize(
    ("votes", "right", "expected"),
    [
        ("4455", "yynn", 0.5),  # a tie, drawn by lot
        ("44455", "yyynn", 1.0),
        ("44555", "yynnn", 0.0),
        ("4", "y", 1.0),
        ("444", "yny", 1.0),  # the reward saw more than the vote
        ("123", "ynn", 1 / 3),
    ],
)
def test_majority(votes: str, right: str, expected: float) -> None:
    assert majority(list(votes), [r == "y" for r in right]) == pytest.approx(expected)


def test_who_gives_no_answer_does_not_vote() -> None:
    assert majority([None, None, "7"], [False, False, True]) == 1.0
    assert majority([None, None], [False, False]) == 0.0


def test_cons_takes_the_first_k_answers() -> None:
    prompt = PromptScores([0] * 5, [True, True, False, False, False], list("aabbb"))
    found = summarise([prompt], [2, 5], confidence=0.9, seed=0)
    assert (found["cons@2"].value, found["cons@5"].value) == (1.0, 0.0)


def test_wilson_against_published_numbers() -> None:
    # Newcombe 1998, table I, method 3 (Wilson without continuity correction).
    assert wilson(81 / 263, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0 / 20, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1 / 29, 29, 0.95) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_zeros_and_ones_get_wilson_and_the_rest_a_seeded_bootstrap() -> None:
    assert interval([1.0, 1.0], confidence=0.95, seed=0).low < 0.5
    values = np.random.default_rng(0).uniform(size=30).tolist()
    first = interval(values, confidence=0.95, seed=1)
    assert first.method == "bootstrap" and float(first) == np.mean(values)
    assert first == interval(values, confidence=0.95, seed=1)
    assert first != interval(values, confidence=0.95, seed=2)
    narrow = interval(values, confidence=0.5, seed=1)
    assert first.low < narrow.low < first.value < narrow.high < first.high
    with pytest.raises(ValueError, match="at least one prompt"):
        interval([], confidence=0.95, seed=0)


def test_bootstrap_is_the_normal_interval_for_many_prompts() -> None:
    values = np.random.default_rng(5).uniform(size=4000)
    found = interval(values.tolist(), confidence=0.95, seed=0)
    half = 1.96 * values.std() / 4000**0.5
    assert found.low == pytest.approx(values.mean() - half, abs=half / 10)
    assert found.high == pytest.approx(values.mean() + half, abs=half / 10)
