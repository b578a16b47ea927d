"""Stages of a rehearsal: which one is on, what each took, where an error came from.

It tells what happens to whoever listens; it knows no trainer and no screen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NAMES = (
    "config",
    "libraries",
    "model",
    "tokenizer",
    "data",
    "environment",
    "logging",
    "workers",
    "training",
    "validation",
    "checkpoint",
    "resume",
    "export",
)
"""Stages of a training in order."""


class Stages:
    """Times stages; one inside another is not counted in the outer one.

    Args:
        tell: called with {"on": name} when a stage begins, with {"done": name,
            "seconds": s, "detail": text} when it has been reported.

    Attributes:
        failed: the innermost stage that an error left.
        inside: the stage that everything is a part of now; None where there is none.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self.tell = tell
        self.failed: str | None = None
        self.inside: str | None = None
        self._seconds: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = time.monotonic()

    @contextmanager
    def stage(self, name: str, *, apart: bool = False) -> Iterator[None]:
        """Do something as a part of a stage.

        Args:
            name: of the stage.
            apart: it is a stage also inside ``whole``.
        """
        name = name if apart else self.inside or name
        self._charge()
        self._stack.append(name)
        self.tell({"on": name})
        try:
            yield
        except BaseException:
            self.failed = self.failed or name
            raise
        else:
            self.failed = None
        finally:
            self._charge()
            self._stack.pop()

    @contextmanager
    def whole(self, name: str) -> Iterator[None]:
        """Let everything that is done inside be a part of one stage."""
        with self.stage(name):
            self.inside = name
            try:
                yield
            finally:
                self.inside = None

    def done(self, name: str, detail: str = "") -> None:
        """Report a stage."""
        seconds = round(self._seconds.get(name, 0.0), 2)
        self.tell({"done": name, "seconds": seconds, "detail": detail})

    def _charge(self) -> None:
        now = time.monotonic()
        if self._stack:
            name = self._stack[-1]
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now


def told_on_stdout() -> Callable[[dict[str, Any]], None]:
    """Return what writes lines of JSON to standard output; others get stderr."""
    # Python leaves the copy to no child, so the reader sees its end with this process.
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(said: dict[str, Any]) -> None:
        stream.write(json.dumps(said) + "\n")

    return tell
