"""``python -m nemo_rl.evals --help``, without torch."""

from __future__ import annotations

import subprocess
import sys


def test_help() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nemo_rl.evals", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python -m nemo_rl.evals my-model my-data" in done.stdout
    assert "| torch\n" not in done.stderr
