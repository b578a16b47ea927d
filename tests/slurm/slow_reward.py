"""Rewards beside a recipe: slow ones, and one that ends the job itself."""

from __future__ import annotations

import os
import signal
import time

STEPS_OF_A_JOB = 3
_steps = 0


def length(prompts: list[str], responses: list[str]) -> list[float]:
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        time.sleep(2.0)
    return [float(len(response)) for response in responses]


def always(prompts: list[str], responses: list[str]) -> list[float]:
    time.sleep(1.0)
    return plain(prompts, responses)


def very(prompts: list[str], responses: list[str]) -> list[float]:
    time.sleep(15.0)
    return plain(prompts, responses)


def stopping(prompts: list[str], responses: list[str]) -> list[float]:
    """As `plain`; in the third step it says what SLURM says before the time limit."""
    global _steps
    _steps += 1
    if _steps == STEPS_OF_A_JOB:
        signal.raise_signal(signal.SIGUSR2)
    return plain(prompts, responses)


def plain(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses]
