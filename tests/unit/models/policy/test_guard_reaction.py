"""Warn, send once more, or halt: with a report each time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nemo_rl.models.policy.guard_findings import Finding
from nemo_rl.models.policy.guard_reaction import Look, Reaction
from nemo_rl.utils.exceptions import ConsistencyError

BAD = Look(
    findings=[Finding(kind="differs", tensor=f"t{n}", detail="bits") for n in range(5)]
)
GOOD = Look(findings=[])


def never() -> Look:
    pytest.fail("the weights were sent once more")


def test_a_warning_names_the_first_tensors(tmp_path: Path, caplog):
    with caplog.at_level(logging.WARNING):
        assert Reaction("warn", tmp_path, {}).settle(3, BAD, never) is BAD
    (line,) = caplog.messages
    assert "step 3: generator and trainer disagree. t0: bits; t1: bits; t2" in line
    assert "and 2 more. Bits were changed" in line and "(a warning)" in line
    assert f"Report: {tmp_path / 'guard' / 'step_000003'}" in line


def test_halting_names_the_report(tmp_path: Path):
    with pytest.raises(ConsistencyError, match=r"t0: bits.*step_000003$"):
        Reaction("halt", tmp_path, {}).settle(3, BAD, never)


def test_what_a_second_transfer_mends_is_over(tmp_path: Path, caplog):
    with caplog.at_level(logging.WARNING):
        assert Reaction("resync", tmp_path, {}).settle(3, BAD, lambda: GOOD) is GOOD
    assert "sent once more" in caplog.messages[0] and "agree" in caplog.messages[1]


def test_what_it_does_not_mend_halts_with_what_is_left(tmp_path: Path):
    left = Look(findings=[Finding(kind="stale", tensor="other", detail="old")])
    with pytest.raises(ConsistencyError, match=r"disagree\. other: old.*000003_2$"):
        Reaction("resync", tmp_path, {}).settle(3, BAD, lambda: left)


def test_without_a_second_transfer_resync_halts(tmp_path: Path):
    with pytest.raises(ConsistencyError):
        Reaction("resync", tmp_path, {}).settle(3, BAD, None)


def test_warnings_do_not_fill_the_disk_and_a_halt_is_always_told(tmp_path: Path):
    reaction = Reaction("warn", tmp_path, {})
    for step in range(30):
        reaction.warn(step, BAD)
    assert len(list((tmp_path / "guard").iterdir())) == 10
    reaction._action = "halt"
    with pytest.raises(ConsistencyError, match="step_000040"):
        reaction.settle(40, BAD, None)
