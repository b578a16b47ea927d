"""What the workers of test_line_workers.py are asked to do."""

from __future__ import annotations

import os
import time


def work(what: str, value: float = 0) -> object:
    """Do as told."""
    if what == "hang":
        time.sleep(600)
    if what == "crash":
        os._exit(3)
    if what == "raise":
        raise ValueError("no")
    if what == "print":
        print("noise")
    if what == "variable":
        return {"value": os.environ.get("A_SECRET"), "pid": 0}
    return {"pid": os.getpid(), "value": value}
