"""What a run printed: all attempts, one attempt, or Ray and its workers on one node.

{prog} 4711 --follow           goes on through requeues, ends with the run
{prog} 4711 --attempt 4711.1   one attempt; also its number in `status`, from 0
{prog} 4711 --node gpu017      Ray's log of that node, and its workers' if kept
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from nemo_rl.launch.follow import appended
from nemo_rl.launch.hostlist import compress
from nemo_rl.launch.runs import cli
from nemo_rl.launch.runs.attempt import Attempt, text_of
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.launch.runs.state import FINAL, look
from nemo_rl.launch.scheduler import Scheduler, SchedulerUnreachable
from nemo_rl.utils.exceptions import LaunchError

TAIL_LINES = 200
ASK_EVERY_S = 15.0
_BEGINS = re.compile(r"^\S+ \S+ job (\d+): attempt (\d+): ")


def main(argv: Sequence[str] | None = None, program: str = "nemo-rl logs") -> int:
    """Command line: RUN [--follow] [--node N] [--attempt K] [--tail N | --all]."""
    parser = cli.make_parser(program, __doc__)
    parser.add_argument("-f", "--follow", action="store_true", help="go on printing")
    parser.add_argument("--node", help="logs of Ray and its workers on this node")
    parser.add_argument("--attempt", help="<job>.<n>, or its place in the list, from 0")
    parser.add_argument(
        "-n",
        "--tail",
        type=int,
        metavar="LINES",
        help=f"last lines only ({TAIL_LINES} with --follow and --node, else all)",
    )
    options = cli.parsed(parser, argv)
    return cli.guarded(lambda: _run(options), options)


def _run(options: argparse.Namespace) -> int:
    run = cli.run_of(options)
    tail = options.tail
    if tail is None and (options.follow or options.node):
        tail = TAIL_LINES
    if options.node:
        files = node_files(run, options.node, options.attempt)
        for path in files:
            print(f"==> {path} <==")
            _print(last_lines(path, tail))
        return 0
    if options.follow and options.attempt:
        raise LaunchError(
            "--follow shows the run from now on, --attempt one that began: leave "
            "one of them out."
        )
    if not options.follow:
        if not run.log.exists():
            raise LaunchError(f"{run.log} does not exist: the job has not begun.")
        if options.attempt:
            lines = attempt_lines(run.log, choose_attempt(run, options.attempt))
            _print(lines if tail is None else deque(lines, tail))
        else:
            _print(last_lines(run.log, tail))
        return 0
    with suppress(KeyboardInterrupt):
        _follow(run, tail)
    return 0


def choose_attempt(run: RunFolder, text: str) -> Attempt:
    """Return the attempt that a text names: "4711.1", "1", "-1" for the last.

    Raises:
        LaunchError: there is none.
    """
    attempts = run.attempts
    for attempt in attempts:
        if attempt.label == text:
            return attempt
    if re.fullmatch(r"-?\d+", text) and -len(attempts) <= int(text) < len(attempts):
        return attempts[int(text)]
    labels = ", ".join(attempt.label for attempt in attempts) or "none yet"
    raise LaunchError(f"{run.label} has no attempt {text}. Attempts: {labels}.")


def attempt_lines(log: Path, attempt: Attempt) -> Iterator[str]:
    """Yield the lines of one attempt in the log of all."""
    wanted = (str(attempt.job_id), str(attempt.number))
    inside = False
    with log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if match := _BEGINS.match(line):
                inside = match.groups() == wanted
            if inside:
                yield line


def node_files(run: RunFolder, node: str, attempt: str | None) -> list[Path]:
    """Return the log files of one node, of the last attempt unless another is named.

    Raises:
        LaunchError: the node had no part in it, or wrote nothing.
    """
    if not run.attempts:
        raise LaunchError(f"{run.label} has no attempts yet: no node wrote anything.")
    chosen = choose_attempt(run, attempt or "-1")
    known = chosen.nodes
    if known and node not in known:
        raise LaunchError(
            f"node {node} had no part in attempt {chosen.label}. Its nodes: "
            f"{compress(known)}."
        )
    kept = chosen.folder / f"ray-logs-{node}"
    files = [chosen.folder / f"ray-{node}.log", *sorted(kept.rglob("*"))]
    files = [path for path in files if path.is_file() and path.stat().st_size]
    if not files:
        place = chosen.facts.get("temp_dir")
        where = (
            f" While it runs they are on the node, below {place}: " if place else " "
        )
        raise LaunchError(
            f"no logs of {node} in {chosen.folder}.{where}nemo-rl attach {run.label} "
            f"--node {node}."
        )
    return files


def last_lines(path: Path, count: int | None) -> Sequence[str] | Iterator[str]:
    """Return the last lines of a file; all for None."""
    if count is None:
        return text_of(path).splitlines(keepends=True)
    with path.open(encoding="utf-8", errors="replace") as file:
        return deque(file, max(0, count))


def _follow(run: RunFolder, tail: int | None) -> None:
    start = 0
    if run.log.exists():
        start = run.log.stat().st_size
        _print(last_lines(run.log, tail))
    else:
        print(f"{run.label}: waiting for {run.log}", file=sys.stderr, flush=True)
    for text in appended(run.log, _Ended(run.path, cli.scheduler_of()), start=start):
        sys.stdout.write(text)
        sys.stdout.flush()


class _Ended:
    """Whether a run has ended; SLURM is asked at most every 15 seconds."""

    def __init__(self, path: Path, scheduler: Scheduler) -> None:
        self._path = path
        self._scheduler: Scheduler | None = scheduler
        self._next = 0.0

    def __call__(self) -> bool:
        if time.monotonic() < self._next:
            return False
        try:
            state = look([RunFolder(self._path)], self._scheduler)[0]
        except SchedulerUnreachable:
            return False
        except LaunchError as error:
            print(f"{error} Going on by the files alone.", file=sys.stderr)
            self._scheduler = None
            return False
        finally:
            self._next = time.monotonic() + ASK_EVERY_S
        return state.state in FINAL


def _print(lines: Sequence[str] | Iterator[str]) -> None:
    for line in lines:
        sys.stdout.write(line)
    sys.stdout.flush()
