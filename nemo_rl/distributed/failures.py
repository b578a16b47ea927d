"""The wording of a worker's failure: which rank, on which host, what, what to do.

Shared by the in-process and the Ray worker group; knows nothing about either.
"""

from __future__ import annotations

import traceback

from nemo_rl.utils.exceptions import NemoRLError, WorkerError

TRACEBACK_LINES = 12
"""Last lines of a foreign traceback that are shown."""


def placed(error: NemoRLError, *, rank: int, host: str) -> NemoRLError:
    """Return the same error with ``(rank r on host h)`` at the end of its message."""
    where = f"(rank {rank} on host {host})"
    if where not in str(error):
        error.args = (f"{error} {where}", *error.args[1:])
    return error


def foreign_error(
    method: str, summary: str, *, rank: int, host: str, trace: str
) -> WorkerError:
    """Word an exception that is not ours, with the end of its traceback.

    Args:
        method: What was called on the worker.
        summary: Type and message of the exception.
        rank: Rank that raised.
        host: Host of that rank.
        trace: The traceback as text.
    """
    tail = "\n".join(trace.rstrip().splitlines()[-TRACEBACK_LINES:])
    return WorkerError(
        f"rank {rank} on host {host} failed in {method}(): {summary}\n"
        f"Last lines of its traceback:\n{tail}"
    )


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
