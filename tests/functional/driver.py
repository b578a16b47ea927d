"""Run a recipe through the real driver: in its own process, as a user does, or in ours.

In this process it starts without importing torch anew: for what it refuses before Ray.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_rl.launch import driver

ROOT = Path(__file__).resolve().parents[2]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, ``changes`` over ``base``."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def write_recipe(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write a recipe and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return path


def command(recipe: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The driver's command line."""
    module = "nemo_rl.launch.driver"
    return [
        sys.executable,
        "-m",
        module,
        str(recipe),
        *overrides,
        "--run-dir",
        str(run_dir),
    ]


def environment() -> dict[str, str]:
    """This process's variables with the checkout importable."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_driver(
    recipe: Path, run_dir: Path, *overrides: str, timeout_s: float = 280
) -> subprocess.CompletedProcess[str]:
    """Run to the end; both streams as text."""
    return subprocess.run(
        command(recipe, run_dir, *overrides),
        env=environment(),
        cwd=recipe.parent,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def succeed(*args: Any, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """``run_driver``, which must end with exit code 0."""
    done = run_driver(*args, **kwargs)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def refuse_before_ray(recipe: Path, run_dir: Path, *overrides: str) -> str:
    """Run the driver in this process; what it says as it refuses with exit code 2.

    The Ray it is told to join does not exist: asking for it is another error.
    """
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        patch.chdir(recipe.parent)
        code = driver.main([str(recipe), *overrides, "--run-dir", str(run_dir)])
    text = errors.getvalue()
    assert code == 2, f"{code}\n{text}"
    assert "Traceback" not in text
    return text
