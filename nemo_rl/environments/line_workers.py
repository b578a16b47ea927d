"""LineWorkers: a function run in processes that may hang or crash without harm.

Own processes instead of multiprocessing's: those import the user's main script again,
and cannot be ended while they work. Knows nothing of rewards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from nemo_rl.distributed.ray_session import driver_python_path
from nemo_rl.utils.env import inherited, worker_env
from nemo_rl.utils.exceptions import ConfigurationError, ResourceError

START_S = 120.0
"""For a process to import what it needs."""
GRACE_S = 10.0
"""After the time of a request, until a process without a parent ends itself."""
_CHUNK = 1 << 16


_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""What a process inherits: it handles text that nobody has read, and needs no keys."""
_PROGRAM = "nemo_rl.environments.line_worker"


class Outcome(NamedTuple):
    """What became of a request."""

    value: Any
    """The function's result; None where it failed."""
    failure: str | None
    """"timed out", "crashed", or what the function raised."""


class LineWorkers:
    """Processes that answer requests by one function.

    Args:
        function: "module:function"; called with a request as keywords.
        num_workers: Processes, started when needed.
        timeout_s: Seconds for one request; after them its process is ended.
    """

    def __init__(self, function: str, num_workers: int, timeout_s: float) -> None:
        """Remember what to start; nothing is started yet."""
        self.function = function
        self.num_workers, self.timeout_s = num_workers, timeout_s
        self._idle: list[_Worker] = []

    def map(self, requests: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """Answer all requests; outcomes in their order.

        Raises:
            ConfigurationError: The function cannot be imported.
            ResourceError: A process does not start.
        """
        outcomes: list[Outcome] = [Outcome(None, "not asked")] * len(requests)
        queue = deque(enumerate(requests))
        busy: dict[Any, tuple[_Worker, int]] = {}
        try:
            while queue or busy:
                while queue and len(busy) < self.num_workers:
                    number, request = queue.popleft()
                    worker = self._idle.pop() if self._idle else self._new()
                    worker.ask(request, self.timeout_s)
                    busy[worker.pipe] = (worker, number)
                soonest = min(worker.deadline for worker, _ in busy.values())
                left = max(0.0, soonest - time.monotonic())
                ready = wait(list(busy), timeout=left)
                for pipe in list(busy):
                    worker, number = busy[pipe]
                    outcome = worker.look(pipe in ready, self.timeout_s)
                    if outcome is not None:
                        del busy[pipe]
                        outcomes[number] = outcome
                        if worker.alive:
                            self._idle.append(worker)
        finally:
            for worker, _ in busy.values():
                worker.end()
        return outcomes

    def _new(self) -> _Worker:
        return _Worker(self.function, self.timeout_s + GRACE_S)

    def close(self) -> None:
        """End the processes; a later ``map`` starts new ones."""
        while self._idle:
            self._idle.pop().end()


class _Worker:
    """One process and the request it works on."""

    def __init__(self, function: str, limit_s: float) -> None:
        own = inherited()
        variables = {name: own[name] for name in _KEPT if name in own}
        variables |= worker_env(use_gpus=False)
        variables["PYTHONPATH"] = driver_python_path()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, function, str(limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=variables,
            bufsize=0,
            start_new_session=True,
        )
        self._function, self._ready, self._buffer = function, False, b""
        self.pipe: Any = self._process.stdout
        self.deadline = 0.0
        self.alive = True

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> None:
        """Send a request; the time to answer it begins once the process is ready."""
        self.deadline = time.monotonic() + (timeout_s if self._ready else START_S)
        stdin: Any = self._process.stdin
        try:
            # It reads a request at a time, and is not busy with another.
            data = json.dumps(dict(request), default=str).encode() + b"\n"
            while data:
                data = data[stdin.write(data) :]
        except BrokenPipeError:
            # It has died; its answers end, which `look` sees.
            return

    def look(self, readable: bool, timeout_s: float) -> Outcome | None:
        """Take what there is to read; the outcome, once there is one."""
        if readable:
            data = self.pipe.read(_CHUNK)
            if not data:
                self.end()
                return Outcome(None, "crashed")
            self._buffer += data
        while b"\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\n")
            answer = json.loads(line)
            if "broken" in answer:
                raise ConfigurationError(answer["broken"])
            if "ready" in answer:
                self._ready = True
                self.deadline = time.monotonic() + timeout_s
            else:
                return Outcome(answer.get("value"), answer.get("error"))
        if time.monotonic() < self.deadline:
            return None
        self.end()
        if not self._ready:
            raise ResourceError(
                f"A process for {self._function} did not start within {START_S:g} s."
            )
        return Outcome(None, "timed out")

    def end(self) -> None:
        """Kill the process."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
