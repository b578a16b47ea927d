"""Tests of nemo_rl.launch.preflight.checks."""

from __future__ import annotations

import time

import pytest

from nemo_rl.launch.preflight.checks import (
    FAIL,
    USER,
    WARN,
    Check,
    bad,
    chosen,
    ok,
    run_checks,
    worst,
)
from nemo_rl.utils.exceptions import ConfigurationError, LaunchError


def raising(error):
    def run(context):
        raise error

    return run


def test_checks_run_at_once_and_are_signed_in_order(context):
    def slow(context):
        time.sleep(0.4)
        return ok("slow")

    checks = [Check("a", "why", slow), Check("b", "why", slow), Check("c", "w", slow)]
    began = time.monotonic()
    found = run_checks(checks, context(node="n1"))
    assert time.monotonic() - began < 1.0
    assert [(one.name, one.node) for one in found] == [(n, "n1") for n in "abc"]
    assert worst(found) == "ok"


def test_a_check_that_hangs_is_a_finding_in_time(context):
    def hang(context):
        time.sleep(3)
        return ok("at last")

    began = time.monotonic()
    checks = [
        Check("hung", "disks hang", hang, 0.3),
        Check("fine", "", lambda c: ok("")),
    ]
    hung, fine = run_checks(checks, context())
    assert time.monotonic() - began < 2
    assert (hung.verdict, hung.measured) == (FAIL, "no answer in 0 s")
    assert "disks hang" in hung.cure and fine.verdict == "ok"
    (late,) = run_checks([Check("x", "", hang, 0.1, late=WARN)], context())
    assert late.verdict == WARN


def test_errors_are_findings_of_whoever_is_to_blame(context):
    checks = [
        Check("recipe", "", raising(ConfigurationError("no such key"))),
        Check("disk", "", raising(OSError(5, "Input/output error"))),
        Check("own", "", raising(KeyError("oops"))),
        Check("given", "", lambda c: bad("x", "y", "z"), blame=USER),
    ]
    recipe, disk, own, given = run_checks(checks, context())
    assert (recipe.verdict, recipe.blame, recipe.measured) == (
        FAIL,
        USER,
        "no such key",
    )
    assert (disk.verdict, disk.blame) == (FAIL, "node")
    assert "Input/output error" in disk.measured
    assert own.verdict == WARN and "oops" in own.measured
    assert given.blame == USER


def test_only_and_skip():
    checks = [Check(name, "", ok) for name in ("shm", "disk", "gpus")]
    assert [c.name for c in chosen(checks, ["gpus", "shm"])] == ["shm", "gpus"]
    assert [c.name for c in chosen(checks, skip=["shm"])] == ["disk", "gpus"]
    with pytest.raises(LaunchError, match="no check 'dsk'. Did you mean disk"):
        chosen(checks, ["dsk"])
