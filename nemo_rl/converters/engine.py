"""Weights shared among threads or processes, within a bound of memory."""

from __future__ import annotations

import ctypes
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import (
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

from nemo_rl.converters.bridge import Side
from nemo_rl.converters.conversion import Conversion, Request
from nemo_rl.converters.manifest import digest
from nemo_rl.converters.partial import Done
from nemo_rl.converters.targets import Piece, write_piece
from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import CheckpointError

_SMALL = 64 << 20
"""Weights that are small beside this are handed out ahead."""
_PR_SET_PDEATHSIG = 1


class Worker:
    """Converts one weight at a time; any number of threads may use it.

    Args:
        conversion: the plan.
        result: the folder that is written, with its files made.
    """

    def __init__(self, conversion: Conversion, result: Path) -> None:
        self.conversion, self.result = conversion, result
        self._files: dict[str, int] = {}
        self._written: Side | None = None
        self._lock = Lock()

    def prepare(self, number: int) -> tuple[Done, list[Piece]]:
        """Digests of a weight's Hugging Face tensors, and the bytes to be written.

        Raises:
            CheckpointError: it could not be read.
        """
        side = self.conversion.side
        weight, dtype = self.conversion.plan[number]
        stored = side.parts(weight)
        parts = [part.to(dtype) for part in stored]
        if any(new is not old for new, old in zip(parts, stored, strict=True)):
            side.release(weight)
        del stored
        done = {n: digest(p) for n, p in zip(weight.rule.hf, parts, strict=True)}
        return done, list(self.conversion.target.pieces(number, parts))

    def write(self, number: int, pieces: Iterable[Piece]) -> None:
        """Write what ``prepare`` made of a weight.

        Raises:
            OSError: it could not be written.
        """
        for piece in pieces:
            write_piece(self._file(piece.file), piece)
        self.conversion.side.release(self.conversion.plan[number][0])

    def copy(self, number: int) -> Done:
        """Prepare a weight and write it; errors as there."""
        done, pieces = self.prepare(number)
        self.write(number, pieces)
        return done

    def check(self, number: int) -> Done:
        """Read a weight of the result; the digests of its Hugging Face tensors.

        Raises:
            CheckpointError: it cannot be read, or has another dtype.
        """
        with self._lock:
            if self._written is None:
                self._written = self.conversion.result(self.result)
        weight, dtype = self.conversion.plan[number]
        done = {}
        parts = self._written.parts(weight)
        for name, part in zip(weight.rule.hf, parts, strict=True):
            if part.dtype != dtype:
                raise CheckpointError(
                    f"{name} is {part.dtype} in the result, expected {dtype}"
                )
            done[name] = digest(part)
        self._written.release(weight)
        return done

    def sync(self) -> None:
        """Force all files with weights to the disk.

        Raises:
            OSError: they could not be stored.
        """
        for name in self.conversion.target.files:
            os.fsync(self._file(name))

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}

    def _file(self, name: str) -> int:
        with self._lock:
            if name not in self._files:
                self._files[name] = os.open(self.result / name, os.O_WRONLY)
            return self._files[name]


_mine: Worker | None = None
"""Of a process that helps another one."""


def _help(parent: int, request: Request, result: Path) -> None:
    global _mine
    # Whoever stops the parent stops this process with it, and not on its own.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)
    _mine = Worker(Conversion(request), result)


def _one(task: str, number: int) -> Done:
    assert _mine is not None
    return getattr(_mine, task)(number)


class Crew:
    """Threads, or processes, that share the weights of a conversion.

    Weights are handed out while their memory stays below twice that of the largest
    weight, whatever the number of workers.

    Args:
        worker: does the work in this process.
        threads: workers in this process.
        processes: workers beside it instead, where more than 1.
    """

    def __init__(self, worker: Worker, threads: int, processes: int) -> None:
        self._worker = worker
        self._count = max(processes if processes > 1 else threads, 1)
        self._costs = worker.conversion.costs
        self._limit = max(*self._costs, 2 * worker.conversion.largest, _SMALL)
        self._pool: Executor
        if processes > 1:
            self._pool = ProcessPoolExecutor(
                processes,
                mp_context=get_context("spawn"),
                initializer=_help,
                initargs=(os.getpid(), worker.conversion.request, worker.result),
            )
        else:
            self._pool = ThreadPoolExecutor(self._count)
        self._remote = processes > 1

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def copies(self, numbers: Iterable[int]) -> Iterator[tuple[int, Done]]:
        """Write weights; each is written once it is yielded.

        Threads prepare them, and this one writes them in their order: a file that grows
        at its end takes a quarter of the time of one that is filled in places, and
        threads that write to one file wait for each other. Processes write themselves.

        Raises:
            OSError: see ``Worker``.
            CheckpointError: see ``Worker``.
        """
        if self._remote:
            yield from self._run("copy", numbers)
            return
        for number, (done, pieces) in self._run("prepare", numbers):
            self._worker.write(number, pieces)
            del pieces
            yield number, done

    def checks(self, numbers: Iterable[int]) -> Iterator[tuple[int, Done]]:
        """Do ``Worker.check`` for weights; errors as there."""
        yield from self._run("check", numbers)

    def _run(self, task: str, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
        """Do a task of ``Worker`` for weights, and yield them in their order."""
        waiting, running = deque(numbers), deque[tuple[int, Future[Any]]]()
        used = 0
        while waiting or running:
            while waiting and len(running) < 2 * self._count:
                cost = self._costs[waiting[0]]
                if running and used + cost > self._limit:
                    break
                number = waiting.popleft()
                running.append((number, self._submit(task, number)))
                used += cost
            number, future = running.popleft()
            pulse.beat()
            yield number, future.result()
            del future
            used -= self._costs[number]

    def _submit(self, task: str, number: int) -> Future[Any]:
        if self._remote:
            return self._pool.submit(_one, task, number)
        return self._pool.submit(getattr(self._worker, task), number)
