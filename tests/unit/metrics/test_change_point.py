"""The alarm for a rise: rarely false on heavy-tailed noise, quick on a real one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nemo_rl.metrics.change_point import RiseDetector

STEPS, RUNS = 10_000, 4


def values(noise: np.ndarray, *, level: float = 1e-3) -> list[float]:
    """A positive series whose logarithm has the noise, of deviation 0.3."""
    return [level * math.exp(0.3 * float(x)) for x in noise]


def alarms(series: list[float]) -> list[int]:
    detector = RiseDetector()
    return [step for step, value in enumerate(series) if detector.add(value)]


@pytest.mark.parametrize("freedom", [2, 3])
def test_it_rarely_cries_wolf(freedom: int):
    """Student's t: with two degrees of freedom it has no variance at all."""
    total = sum(
        len(alarms(values(np.random.default_rng(run).standard_t(freedom, STEPS))))
        for run in range(RUNS)
    )
    assert total <= RUNS  # once in 10,000 steps, on average


def test_a_rise_is_noticed_within_some_steps():
    delays = []
    for run in range(40):
        noise = np.random.default_rng(run).standard_normal(130)
        noise[100:] += 3.0
        found = [step - 99 for step in alarms(values(noise))]
        assert found and found[0] > 0, f"run {run}: {found}"
        delays.append(found[0])
    assert np.mean(delays) < 9 and max(delays) < 20


def test_a_fall_and_a_single_peak_are_no_rise():
    noise = np.random.default_rng(0).standard_normal(200)
    noise[100:] -= 5.0
    assert alarms(values(noise)) == []
    noise = np.random.default_rng(0).standard_normal(200)
    noise[150] = 1000.0
    assert alarms(values(noise)) == []


def test_the_alarm_tells_what_is_usual_and_when_it_began():
    detector = RiseDetector()
    for step in range(50):
        assert detector.add(1e-3 * (1.1 + 0.1 * (step % 3))) is None
    found = [detector.add(0.1) for _ in range(4)]
    alarm = found[-1]
    assert alarm is not None and found[:-1] == [None] * 3
    assert alarm.value == 0.1 and alarm.begun == 4
    assert alarm.usual == pytest.approx(1.2e-3)
    # The new level is learnt, and is no news any more.
    assert not any(detector.add(0.1) for _ in range(100))


def test_a_constant_series_with_rounding_is_quiet():
    assert alarms([1e-7 * (1 + 1e-9 * step) for step in range(300)]) == []
    assert alarms([0.0] * 300) == []


def test_what_is_not_finite_is_passed_over():
    detector = RiseDetector()
    for _ in range(50):
        detector.add(1.0)
        assert detector.add(math.nan) is None and detector.add(math.inf) is None
    assert len(detector.state_dict()["past"]) == 50


def test_it_goes_on_after_a_resume():
    noise = np.random.default_rng(3).standard_normal(130)
    noise[100:] += 3.0
    series = values(noise)
    whole, first, second = RiseDetector(), RiseDetector(), RiseDetector()
    expected = [bool(whole.add(value)) for value in series]
    found = [bool(first.add(value)) for value in series[:102]]
    second.load_state_dict(first.state_dict())
    assert found + [bool(second.add(value)) for value in series[102:]] == expected
