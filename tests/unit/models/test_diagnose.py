"""The command: its help without torch, its refusals, its exit codes.

Whole runs are in tests/functional/test_evals.py.
"""

from __future__ import annotations

import subprocess
import sys

from nemo_rl.launch.__main__ import main as nemo_rl


def test_help_needs_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "nemo_rl.models.diagnose"]
    done = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, check=True
    )
    assert "python -m nemo_rl.models.diagnose smollm2-135m-instruct" in done.stdout
    assert "| torch\n" not in done.stderr


def test_mistakes_are_one_paragraph(capsys, tmp_path) -> None:
    assert nemo_rl(["diagnose", str(tmp_path)]) == 2
    assert nemo_rl(["diagnose", str(tmp_path), "policy.precison=float32"]) == 2
    errors = capsys.readouterr().err
    assert "has no config.json" in errors and "Did you mean precision" in errors
    assert "Traceback" not in errors
