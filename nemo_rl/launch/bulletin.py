"""The attempt folder: how the agents of a job tell each other where they stand.

A file per node with a growing beat, and a few files written once. The folder lies
on the file system all nodes share; a beat is judged by this node's own clock, so
clocks may differ. Knows nothing about Ray and about processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXIT_CODE = "exit_code"
HEAD = "head.json"
TOKEN = "ray_token"


class Bulletin:
    """Reads and writes the attempt folder for one node."""

    def __init__(self, folder: Path, node: str, *, ip: str = "") -> None:
        """Create the folder, private to the user.

        Args:
            folder: `<run dir>/attempts/<job>.<n>`; the same for all nodes.
            node: this node's name.
            ip: this node's address.
        """
        self.folder = folder
        self.node = node
        self.ip = ip
        self.facts: dict[str, Any] = {}
        """What every beat tells beside the state."""
        self._beat = 0
        self._last = ("starting", "")
        self._reached: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        (folder / "nodes").mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Return the path of a file of the folder."""
        return self.folder / name

    def beat(self, state: str, message: str = "") -> None:
        """Say that this node lives, and in what state."""
        self._beat += 1
        self._last = (state, message)
        self.publish(
            f"nodes/{self.node}.json",
            {
                "state": state,
                "message": message,
                "ip": self.ip,
                "beat": self._beat,
                **self.facts,
                "reached": self._reached,
            },
        )

    def reached(self, *moments: str, **times: float) -> None:
        """Write down that moments of `timeline.MOMENTS` have come.

        Args:
            moments: names of those that are now.
            times: moment -> seconds since 1970, of those that were before.
        """
        self._reached |= times | dict.fromkeys(moments, time.time())
        self.beat(*self._last)

    def publish(self, name: str, content: Any) -> None:
        """Write a file as a whole: a reader sees the old or the new one."""
        partial = self.path(f"{name}.{self.node}.tmp")
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(self.path(name))

    def read(self, name: str) -> Any | None:
        """Return a file's content, None where there is none yet.

        Opening, not asking for the time of change, makes a network file system
        fetch the newest version.
        """
        try:
            return json.loads(self.path(name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def node_status(self, node: str) -> dict[str, Any]:
        """Return a node's last word; state "missing" before its first."""
        status = self.read(f"nodes/{node}.json")
        return status or {"state": "missing", "message": "", "ip": "", "beat": 0}

    def silent(self, nodes: Iterable[str], limit_s: float) -> list[str]:
        """Return the nodes without a new beat for `limit_s` seconds.

        Call it regularly: the time counts from when a beat was first seen here.
        """
        now = time.monotonic()
        found = []
        for node in nodes:
            beat = self.node_status(node)["beat"]
            known, since = self._seen.get(node, (None, now))
            if beat != known:
                self._seen[node] = (beat, now)
            elif now - since > limit_s:
                found.append(node)
        return found
