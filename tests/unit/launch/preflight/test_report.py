"""Tests of nemo_rl.launch.preflight.report."""

from __future__ import annotations

import json

from nemo_rl.launch.preflight import report
from nemo_rl.launch.preflight.checks import Check, Finding, ok

FINDINGS = [
    Finding(name="shm", verdict="ok", measured="9 MiB", limit="8 MiB"),
    Finding(name="disk", verdict="fail", measured="1 MiB " * 20, limit="2", cure="rm"),
]


def test_a_table_fits_its_width():
    lines = report.table(FINDINGS, width=60).splitlines()
    assert lines[0].split() == ["check", "verdict", "measured", "limit"]
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].split() == ["shm", "ok", "9", "MiB", "8", "MiB"]
    assert lines[-1].strip() == "-> rm"


def test_json_says_why():
    found = json.loads(report.as_json(FINDINGS, [Check("shm", "Ray needs it", ok)]))
    assert (found[0]["why"], found[1]["verdict"]) == ("Ray needs it", "fail")


def test_exit_codes():
    assert report.exit_code(FINDINGS[:1]) == 0
    assert report.exit_code(FINDINGS) == 1
    mistake = Finding(verdict="fail", measured="", blame="user")
    assert report.exit_code([*FINDINGS, mistake]) == 2
    assert report.exit_code([Finding(verdict="warn", measured="")]) == 0
    assert report.summary(FINDINGS, ["gpus"]).startswith("1 ok, 1 fail\nOnly a compute")
