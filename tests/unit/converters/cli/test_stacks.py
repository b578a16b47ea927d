"""Whether both stacks can run here, and what is said of their numbers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nemo_rl.converters.cli import stacks
from nemo_rl.utils.exceptions import CheckpointError

FOUND = {
    "difference": 1e-5,
    "largest": 20.0,
    "equal": True,
    "prompt": "1 2",
    "megatron": "3 4",
    "transformers": "3 4",
}
PLACES = (Path("meg"), Path("meg/hf"), Path("hf"))


def ended(monkeypatch, code, out, err=""):
    done = subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(stacks.subprocess, "run", lambda *_, **__: done)


def test_a_model_that_does_not_fit_is_not_run():
    assert stacks.why_not(1000) is None
    assert "they need 5.5 TiB of memory" in str(stacks.why_not(10**12))


def test_what_is_said_of_equal_and_of_different_stacks(monkeypatch):
    ended(monkeypatch, 0, "a warning\n" + json.dumps(FOUND))
    text = stacks.compare_stacks(*PLACES)
    assert "logit 1.0e-05, of the largest logit 20.0" in text
    assert "both continue '1 2' with '3 4'" in text
    other = {**FOUND, "equal": False, "difference": 3.0, "transformers": "5 6"}
    ended(monkeypatch, 1, json.dumps(other))
    with pytest.raises(CheckpointError, match=r"different models.*'3 4'.*'5 6'"):
        stacks.compare_stacks(*PLACES)


def test_a_stack_that_fails_says_why(monkeypatch):
    ended(monkeypatch, 2, "", "Traceback\nnemo_rl: no such folder\n")
    with pytest.raises(CheckpointError, match="could not be compared: .*no such fol"):
        stacks.compare_stacks(*PLACES)
