"""A reward beside a recipe: slow until the job is requeued, so that tests can act."""

from __future__ import annotations

import os
import time


def length(prompts: list[str], responses: list[str]) -> list[float]:
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        time.sleep(2.0)
    return [float(len(response)) for response in responses]
