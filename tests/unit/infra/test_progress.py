"""Numbers of the display: history lines, time left, formats, which metric is which."""

from __future__ import annotations

import math

import pytest

from nemo_rl.infra.progress import (
    BLOCKS,
    Progress,
    duration,
    lookup,
    number,
    shortened,
    sparkline,
)


def test_sparkline_goes_from_lowest_to_highest():
    assert sparkline(list(range(8)), 20) == BLOCKS
    assert sparkline([1.0, 0.0], 20) == "█▁"
    assert sparkline([0.0, math.nan, 1.0], 20) == "▁ █"


def test_sparkline_averages_groups_when_it_is_narrow():
    assert sparkline([0, 0, 1, 1], 2) == "▁█"
    assert len(sparkline(list(range(1000)), 37)) == 37
    assert sparkline([0, math.nan, math.nan, math.nan], 2) == "▄ "


def test_sparkline_of_nothing_and_of_a_constant():
    assert sparkline([], 10) == "" and sparkline([1.0], 0) == ""
    assert sparkline([0.5] * 3, 10) == "▄▄▄"
    assert sparkline([math.inf, math.nan], 10) == "  "
    assert sparkline([0, 1], 5, "_#") == "_#"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0, "0:00"),
        (724, "12:04"),
        (3723, "1:02:03"),
        (183840, "2d 03:04"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (0.6125, "0.6125"),
        (-0.0031, "-0.0031"),
        (1.2e-5, "1.2e-05"),
        (-6.6e-9, "0.0000"),
        (9.3, "9.300"),
        (42.12, "42.1"),
        (1204.4, "1,204"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_shortened_keeps_the_beginning_or_the_end_on_one_line():
    assert shortened("a\n b\tc", 10) == "a b c"
    assert shortened("0123456789", 8) == "01234..."
    assert shortened("0123456789", 8, keep_end=True) == "...56789"
    assert "\x1b" not in shortened("\x1b[31mred", 20)


def test_lookup_accepts_prefixes_and_skips_text():
    assert lookup({"train/loss": 2}, ("loss",)) == 2.0
    assert lookup({"loss": "x", "other": 1.0}, ("loss", "other")) == 1.0
    assert lookup({}, ("loss",)) is None


def test_time_left_follows_the_latest_steps_and_ignores_validation():
    now = [0.0]
    state = Progress("t", 10, clock=lambda: now[0])
    assert state.left_s is None
    for step in (1, 2):
        now[0] += 10.0
        state.update(step, {"reward": step})
    now[0] += 500.0
    state.validation(2, {"accuracy": 0.5})
    now[0] += 10.0
    state.update(3, {"reward": 3})
    assert state.left_s == pytest.approx(70.0)
    assert state.elapsed_s == pytest.approx(530.0)
    assert state.fraction == pytest.approx(0.3)
    assert state.history == [1.0, 2.0, 3.0]
    now[0] += 4.0
    assert state.left_s == pytest.approx(66.0)


def test_without_a_last_step_there_is_no_estimate():
    state = Progress("t", None)
    state.update(1, {"loss": 1})
    assert state.left_s is None and state.fraction == 0.0


def test_validation_shows_accuracy_before_anything_else():
    state = Progress("t", 10)
    state.validation(0, {"val/length": 3, "val/accuracy": 0.25, "note": "x"})
    state.validation(5, {"score": 2.0})
    state.validation(6, {"note": "x"})
    assert state.validations == [(0, "accuracy", 0.25), (5, "score", 2.0)]
