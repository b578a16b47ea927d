"""When a validation is due, and means over batches of different sizes."""

from __future__ import annotations

import pytest

from nemo_rl.trainers.validation import ValidationResult, ValidationRunner


def row(reward, length=2, truncated=False):
    return {
        "response": "r",
        "reward": reward,
        "response_length": length,
        "truncated": truncated,
    }


def runner(batches=(), **fields):
    return ValidationRunner(list, lambda: batches, **{"period": 0, **fields})


def test_due_every_period():
    found = runner(period=3)
    assert [s for s in range(10) if found.due(s)] == [3, 6, 9]
    assert not found.due(10, last=True)


def test_due_never_without_a_period():
    assert not any(runner().due(step, last=True) for step in range(5))


def test_due_at_the_start_and_at_the_end():
    assert runner(at_start=True).due(0)
    assert not runner(at_end=True, period=1).due(0)
    assert runner(at_end=True).due(7, last=True)
    assert not runner(at_end=True).due(7)


def test_run_weighs_every_prompt_equally():
    """A smaller last batch must not count more: 3 rows and 1 row."""
    batches = [[row(1.0, 4), row(1.0, 2), row(1.0, 2, True)], [row(0.0, 12)]]
    result = runner(batches).run()
    assert result.metrics == {
        "accuracy": 0.75,
        "response_length": 5.0,
        "truncated_fraction": 0.25,
        "num_samples": 4.0,
    }
    assert result.samples == [*batches[0], *batches[1]]


def test_run_takes_the_batches_anew_each_time():
    calls = []

    def batches():
        calls.append(1)
        return iter([[row(1.0)]])

    found = ValidationRunner(list, batches, period=1)
    assert found.run() == found.run()
    assert len(calls) == 2


def test_run_hands_each_batch_to_the_evaluation():
    found = ValidationRunner(
        lambda batch: [row(float(x)) for x in batch], lambda: [[1, 2], [3]], period=1
    )
    assert found.run().metrics["accuracy"] == pytest.approx(2.0)


def test_run_without_rows_is_empty():
    assert runner([[]]).run() == runner().run() == ValidationResult()
