"""A context to check, and programs to stand for SLURM's and NVIDIA's."""

from __future__ import annotations

import pytest

from nemo_rl.launch.preflight.checks import Context


@pytest.fixture
def context(tmp_path):
    """Return a function that makes a context with what a test changes."""

    def make(**changes):
        folder = tmp_path / "bin"
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "temp").mkdir(exist_ok=True)
        changes["variables"] = {
            "PATH": f"{folder}:/usr/bin:/bin",
            **changes.get("variables", {}),
        }
        return Context(
            **{
                "run_dir": tmp_path / "run",
                "temp_root": tmp_path / "temp",
                "node": "localhost",
                "memory_mb": 1024,
                **changes,
            }
        )

    return make


@pytest.fixture
def program(tmp_path):
    """Return a function that puts a program into the context's PATH."""

    def make(name, body):
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    return make
