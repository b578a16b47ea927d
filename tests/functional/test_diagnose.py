"""`nemo-rl diagnose` as a user runs it, on two tensor-parallel ranks."""

from __future__ import annotations

import subprocess
import sys

from tests.fakes import models
from tests.functional.driver import environment


def test_two_ranks_agree(tmp_path) -> None:
    model = models.save(tmp_path / "model", "qwen2", layers=2)
    command = [sys.executable, "-m", "nemo_rl.launch", "diagnose", str(model)]
    done = subprocess.run(
        [*command, "--tp", "2"],
        env=environment() | {"COLUMNS": "200"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count(" ok ") == 3 and "TP2" in done.stdout
