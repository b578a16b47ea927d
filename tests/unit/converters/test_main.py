"""``python -m nemo_rl.converters`` is the command line of ``cli.py``."""

from __future__ import annotations

import subprocess
import sys


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "nemo_rl.converters", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "python -m nemo_rl.converters hf-to-megatron MODEL OUT" in done.stdout
