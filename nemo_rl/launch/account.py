"""Who failed, by the accounts of the driver, of Ray, of SLURM and of the watchdog.

The driver holds the context `Account`, the head's agent reads its file. A driver that
is killed writes nothing: then its exit code and last lines have to do.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_rl.infra.hang import Verdict
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.failure import LINES, Failure, last_lines
from nemo_rl.utils.exceptions import NemoRLError
from nemo_rl.utils.files import write_json

ACCOUNT = "account.json"
"""In the attempt's folder."""
_TAIL_BYTES = 64 * 1024
_SLURM = re.compile(r"DUE TO (NODE FAILURE|PREEMPTION|TIME LIMIT)|Node failure on")
_LOST_NODE = re.compile(r"Node failure on (\S+)")
_HUNG = re.compile(r"(.+?)(?: rank (\d+))? on (\S+)")
_RAYS_OWN = re.compile(r"(\w+) \[exit code=(-?\d+)")
_LAST_LINES = re.compile(r"\nLast lines of its (traceback|log):\n")


class Account:
    """Context that writes down the exception that ends a process, for its agent.

    Args:
        path: where; None: nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        """Remember where."""
        self.path = path

    def __enter__(self) -> Account:
        """Enter the block."""
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Write message, last lines and the worker's place, if it names one."""
        if self.path is None or not isinstance(error, Exception):
            return
        ours = isinstance(error, NemoRLError)
        text = str(error) if ours else f"{kind.__name__}: {error}"
        message, _, lines = _LAST_LINES.sub("\0", text, count=1).partition("\0")
        if not ours:
            lines = "".join(traceback.format_exception(kind, error, trace))
        content = {
            "message": message,
            "lines": last_lines(lines),
            "place": getattr(error, "place", None),
        }
        with suppress(OSError):  # The exception itself says it, too.
            write_json(self.path, content)


def of_driver(
    node: str,
    code: int,
    account: Mapping[str, Any] | None,
    *,
    names: Sequence[str],
    tail: Sequence[str],
    pid: int | None = None,
) -> Failure:
    """Word the failure of the driver, or of the worker it tells of.

    Args:
        node: where the driver ran.
        code: its exit code, as the shell counts.
        account: what the driver wrote down of its exception; None if it is gone
            without a word.
        names: the job's nodes.
        tail: last lines of its output.
        pid: its process id.
    """
    if not account:
        failure = Failure(
            node=node,
            process="driver",
            message="",
            pid=pid,
            exit_code=code,
            lines=tuple(tail),
        )
        return replace(failure, message=failure.summary)
    place = account.get("place") or {}
    told = Failure(
        node=node,
        process="driver",
        message=account["message"],
        pid=pid,
        exit_code=code,
        raised=True,
        lines=tuple(account.get("lines") or tail),
    )
    if not place:
        return told
    died = bool(place.get("died"))
    return replace(
        told,
        # Of a worker that is gone the driver's output tells nothing.
        lines=tuple(account.get("lines") or (() if died else tail)),
        node=_named(place.get("host", ""), names),
        process="worker",
        rank=place.get("rank"),
        group=place.get("group", ""),
        pid=place.get("pid"),
        exit_code=None,
        raised=not died,
    )


def _named(host: str, names: Sequence[str]) -> str:
    """SLURM's name of a host: without its domain, if that is a node of the job."""
    short = host.partition(".")[0]
    return next((name for name in names if name in (host, short)), host)


def blame_driver(
    job: Allocation, board: Bulletin, log: Path, *, code: int, pid: int
) -> Failure:
    """Say whose failure ended the driver: its own, or a worker's.

    Args:
        job: the driver's node.
        board: the attempt's folder.
        log: the run's job.log.
        code: the driver's exit code, as the shell counts.
        pid: its process id.
    """
    return of_driver(
        job.node_name,
        code,
        board.read(ACCOUNT),
        names=job.node_names,
        tail=attempt_tail(log, job.job_id),
        pid=pid,
    )


def of_ray(node: str, code: int, log: Sequence[str], *, pid: int | None) -> Failure:
    """Word the end of `ray start --block` on a node.

    It names the daemon that ended it; its own exit code says nothing then.

    Args:
        node: where.
        code: its exit code, as the shell counts.
        log: lines of its log.
        pid: its process id.
    """
    match = next(filter(None, map(_RAYS_OWN.search, reversed(log))), None)
    name = match[1] if match else "ray start"
    if match:
        number = int(match[2])
        code, pid = (number if number >= 0 else 128 - number), None
    failure = Failure(
        node=node,
        process=name,
        message="",
        pid=pid,
        exit_code=code,
        lines=last_lines("\n".join(log)),
    )
    return replace(failure, message=failure.summary)


def of_slurm(node: str, tail: Sequence[str]) -> Failure | None:
    """Word what SLURM said when it ended a job; None where somebody cancelled it.

    Args:
        node: the head, where no other is named.
        tail: last lines of job.log.
    """
    told = [line for line in tail if _SLURM.search(line)]
    if not told:
        return None
    match = next(filter(None, map(_LOST_NODE.search, told)), None)
    return Failure(
        node=match[1] if match else node,
        process="SLURM",
        message=f"node {match[1]} failed, says SLURM" if match else told[0],
        raised=True,
        lines=tuple(told),
    )


def of_hang(node: str, verdict: Verdict) -> Failure:
    """Word what the watchdog found.

    Args:
        node: the head, where nobody stands out.
        verdict: its judgement.
    """
    match = _HUNG.fullmatch(verdict.names[0]) if verdict.names else None
    name, rank, host = match.groups() if match else ("run", None, node)
    return Failure(
        node=host,
        process=name if rank is None else "worker",
        rank=None if rank is None else int(rank),
        group="" if rank is None else name,
        message=f"the run hung: {verdict.text}\n"
        "What to do: stacks/ in the attempt's folder has where every thread was; raise "
        "cluster.hang_timeout_s if it was only slow.",
        raised=True,
    )


def attempt_tail(log: Path, job_id: int, count: int = LINES) -> tuple[str, ...]:
    """Return the last lines of job.log, of this attempt only."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    begin = text.rfind(f" job {job_id}: attempt ")
    text = text[begin:].partition("\n")[2] if begin >= 0 else text
    return last_lines(text, count)
