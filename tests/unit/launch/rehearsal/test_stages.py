"""Tests of stages: what is told, whose time it is, where an error came from."""

from __future__ import annotations

import time

import pytest

from nemo_rl.launch.rehearsal.stages import Stages


def test_a_stage_inside_another_is_not_counted_twice():
    told = []
    stages = Stages(told.append)
    with stages.stage("data"), stages.stage("environment"):
        time.sleep(0.05)
    stages.done("environment", "made")
    stages.done("data")
    inner, outer = told[-2:]
    assert [each["on"] for each in told[:2]] == ["data", "environment"]
    assert inner["seconds"] >= 0.05 > outer["seconds"]
    assert inner["detail"] == "made"


def test_a_whole_stage_swallows_those_inside_but_the_ones_apart():
    told = []
    stages = Stages(told.append)
    with (
        stages.whole("resume"),
        stages.stage("workers"),
        stages.stage("export", apart=True),
    ):
        pass
    with stages.stage("workers"):
        pass
    assert [each["on"] for each in told] == ["resume", "resume", "export", "workers"]


def test_the_innermost_stage_failed_unless_its_error_was_caught():
    stages = Stages(lambda said: None)
    with pytest.raises(KeyError), stages.stage("data"), stages.stage("environment"):
        raise KeyError("prompt")
    assert stages.failed == "environment"
    with (
        stages.stage("training"),
        pytest.raises(KeyError),
        stages.stage("checkpoint"),
    ):
        raise KeyError("again")
    assert stages.failed is None
