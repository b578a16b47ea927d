"""Processes that hang, crash and raise, without harm to their neighbours."""

from __future__ import annotations

import time
from multiprocessing.connection import wait

import pytest

from nemo_rl.environments.line_workers import LineWorkers, Outcome, _Worker
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


def test_keys_of_the_user_are_not_handed_on(workers, monkeypatch):
    monkeypatch.setenv("A_SECRET", "of the user")
    (outcome,) = workers.map([{"what": "variable"}])
    assert outcome.value == {"value": None, "pid": 0}


def test_a_function_that_cannot_be_imported():
    with pytest.raises(ConfigurationError, match="has no 'wrok'. Did you mean work"):
        LineWorkers(WORK.replace(":work", ":wrok"), 1, 1.0).map([{}])


def test_a_process_that_nobody_ends_ends_itself():
    worker = _Worker(WORK, 0.5)
    worker.ask({"what": "hang"}, 60.0)
    assert wait([worker.pipe], timeout=60)
    assert worker.look(True, 60.0) is None  # it is ready
    assert wait([worker.pipe], timeout=30)
    assert worker.look(True, 60.0) == Outcome(None, "crashed")
