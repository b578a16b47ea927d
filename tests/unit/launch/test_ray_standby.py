"""Tests of nemo_rl.launch.ray_standby."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from nemo_rl.launch.ray_standby import command


@pytest.fixture(autouse=True)
def needs_ray():
    pytest.importorskip("ray")


def test_it_waits_for_its_arguments(tmp_path):
    path = tmp_path / "ray.json"
    words = command(sys.executable, path)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    time.sleep(0.2)
    assert process.poll() is None
    partial = tmp_path / "partial"
    partial.write_text(json.dumps({"arguments": ["--version"], "variables": {}}))
    partial.rename(path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert said.startswith("ray, version")


def test_it_ends_with_its_parent(tmp_path):
    words = command(sys.executable, tmp_path / "none")
    assert words[-1] == str(os.getpid())
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = subprocess.run([*words[:-1], str(gone.pid)], timeout=120)
    assert done.returncode == 1
