"""Phase timers."""

import pytest

from nemo_rl.utils.timer import Timer


def test_phases_add_up_and_reset() -> None:
    ticks = iter([0.0, 1.5, 10.0, 10.25, 20.0, 21.0])
    timer = Timer(clock=lambda: next(ticks))
    with timer.time("generation"):
        pass
    with timer.time("generation"):
        pass
    assert timer.seconds("generation") == 1.75
    assert timer.metrics(reset=True) == {"timing/generation_s": 1.75}
    assert timer.metrics() == {}
    assert timer.seconds("generation") == 0.0


def test_a_phase_that_raises_is_counted() -> None:
    ticks = iter([0.0, 2.0])
    timer = Timer(clock=lambda: next(ticks))
    with pytest.raises(KeyError), timer.time("train"):
        raise KeyError("x")
    assert timer.seconds("train") == 2.0
