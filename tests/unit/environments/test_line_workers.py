"""Processes that hang, crash and raise, without harm to their neighbours."""

from __future__ import annotations

import time

import pytest

from nemo_rl.environments.line_workers import LineWorkers
from nemo_rl.utils.exceptions import ConfigurationError

WORK = "tests.unit.environments.line_tasks:work"


@pytest.fixture
def workers():
    pool = LineWorkers(WORK, 2, timeout_s=1.0)
    yield pool
    pool.close()


def test_outcomes_are_in_order_whatever_happens(workers):
    asked = ["ok", "hang", "print", "crash", "raise", "ok", "ok"]
    started = time.monotonic()
    outcomes = workers.map([{"what": w, "value": n} for n, w in enumerate(asked)])
    failures = [outcome.failure for outcome in outcomes]
    assert failures == [
        None, "timed out", None, "crashed", "ValueError: no", None, None
    ]  # fmt: skip
    values = [outcome.value["value"] for outcome in outcomes if outcome.value]
    assert values == [0, 2, 5, 6]
    assert time.monotonic() - started < 60
    # Those that are left serve again, in the same processes.
    before = {outcome.value["pid"] for outcome in outcomes[-2:]}
    again = workers.map([{"what": "ok"}] * 4)
    assert before & {outcome.value["pid"] for outcome in again}
    assert workers.map([]) == []


def test_a_function_that_cannot_be_imported():
    with pytest.raises(ConfigurationError, match="has no 'wrok'. Did you mean work"):
        LineWorkers(WORK.replace(":work", ":wrok"), 1, 1.0).map([{}])
