"""The wording of a worker's failure: which rank, on which host, what, what to do.

Shared by the in-process and the Ray worker group; knows nothing about either.
"""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_rl.utils.exceptions import (
    NemoRLError,
    ResourceError,
    WorkerDied,
    WorkerError,
)

if TYPE_CHECKING:
    from nemo_rl.distributed.worker_shell import Place

TRACEBACK_LINES = 12
"""Last lines of a foreign traceback that are shown."""


_NO_MEMORY = re.compile(r"(OutOfMemoryError|MemoryError)\b")
_COLOURS = re.compile(r"\x1b\[\d*m")


def placed(error: NemoRLError, *, rank: int, host: str) -> NemoRLError:
    """Return the same error with ``(rank r on host h)`` at the end of its message."""
    where = f"(rank {rank} on host {host})"
    if where not in str(error):
        error.args = (f"{error} {where}", *error.args[1:])
    if error.place is None:
        error.place = {"rank": rank, "host": host}
    return error


def foreign_error(
    method: str, summary: str, *, rank: int, host: str, trace: str
) -> WorkerError | ResourceError:
    """Word an exception that is not ours, with the end of its traceback.

    Memory that does not suffice, torch's or Python's, is a ResourceError.

    Args:
        method: What was called on the worker.
        summary: Type and message of the exception.
        rank: Rank that raised.
        host: Host of that rank.
        trace: The traceback as text.
    """
    error: WorkerError | ResourceError
    if _NO_MEMORY.match(summary):
        error = ResourceError(
            f"rank {rank} on host {host} ran out of memory in {method}(): {summary}\n"
            "What to do: lower policy.train_micro_batch_size, logprob_batch_size or "
            "generation_batch_size, or raise the parallel sizes."
        )
    else:
        trace = _COLOURS.sub("", trace)
        tail = "\n".join(trace.rstrip().splitlines()[-TRACEBACK_LINES:])
        error = WorkerError(
            f"rank {rank} on host {host} failed in {method}(): {summary}\n"
            f"Last lines of its traceback:\n{tail}"
        )
    error.place = {"rank": rank, "host": host}
    return error


@dataclass(frozen=True)
class Failure:
    """What one rank answered instead of a result."""

    error: NemoRLError
    """Worded for the user."""
    died: bool
    """The process is gone, as opposed to having raised."""


_CONSEQUENCE = re.compile(
    r"closed by peer|connection reset|connection refused|connection closed|"
    r"broken pipe|nccl|gloo|timed out waiting|socket timeout",
    re.IGNORECASE,
)
"""What a rank's collective says when a peer has gone."""


def root_cause(failures: list[Failure], *, size: int, group: str = "") -> NemoRLError:
    """Pick the failure the others follow from: a death, else not a lost connection.

    Args:
        failures: In the order they were noticed, at least one.
        size: Number of ranks, for the message.
        group: What the group runs; added to the error's place.
    """

    def weight(failure: Failure) -> int:
        if failure.died:
            return 0
        return 2 if _CONSEQUENCE.search(str(failure.error)) else 1

    error = min(failures, key=weight).error
    error.place = (error.place or {}) | {"group": group}
    if len(failures) > 1:
        error.add_note(f"{len(failures)} of {size} ranks failed; this one is shown.")
    return error


def dead_worker(
    method: str, reason: str, *, rank: int, place: Place | None, log_tail: str
) -> WorkerDied:
    """Word the death of a worker process.

    Args:
        method: What it was doing.
        reason: Ray's account of it; its first telling line is shown.
        rank: Which rank.
        place: Where it ran, if that was known.
        log_tail: End of its log, if it could be read.
    """
    where = (
        f"on host {place.host} (node {place.node_id[:12]}, process {place.pid})"
        if place
        else "that had not started yet"
    )
    shown = f"\nLast lines of its log:\n{log_tail}" if log_tail else ""
    error = WorkerDied(
        f"The worker of rank {rank} {where} died in {method}(): {_telling(reason)}\n"
        "What to do: if it was out of memory, lower policy.train_micro_batch_size or "
        "raise the parallel sizes; otherwise look at that host (dmesg, nvidia-smi). "
        f"The run continues from its newest checkpoint when started again.{shown}"
    )
    error.place = {"rank": rank, "died": True}
    if place:
        error.place |= {"host": place.host, "pid": place.pid}
    return error


_TELLING = re.compile(r"exit detail|killed|memory|node.*(died|dead)", re.IGNORECASE)


def _telling(reason: str) -> str:
    """Return Ray's own finding, without the causes it lists for every death."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    line = next((line for line in lines if _TELLING.search(line)), "".join(lines[:1]))
    line = line.partition("Some common causes")[0].rpartition("exit detail:")[2]
    return line.strip() or "no reason given."


class NamedErrors:
    """Context that turns what a worker raises into the errors of a worker group.

    Example:
        >>> with NamedErrors("train", rank=0, host="node0"):
        ...     worker.train(batch)
    """

    def __init__(self, method: str, *, rank: int, host: str) -> None:
        """Remember whose errors these are."""
        self._method = method
        self._rank = rank
        self._host = host

    def __enter__(self) -> NamedErrors:
        """Enter the block."""
        return self

    def __exit__(self, kind, error, trace) -> bool:
        """Name a NemoRLError's place; wrap any other Exception in a WorkerError."""
        if isinstance(error, NemoRLError):
            placed(error, rank=self._rank, host=self._host)
        elif isinstance(error, Exception):
            text = "".join(traceback.format_exception(kind, error, trace))
            raise foreign_error(
                self._method,
                f"{kind.__name__}: {error}",
                rank=self._rank,
                host=self._host,
                trace=text,
            ) from error
        return False
