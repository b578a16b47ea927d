"""What the commands on runs share: the argument RUN, where the checkout is, errors."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_rl.launch import driver, site
from nemo_rl.launch.runs.find import find_run, unfolded
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.launch.scheduler import Scheduler
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError

RUN_HELP = "job number, <recipe>/<job id>, or the path of a run folder"


def make_parser(
    program: str, description: str | None, *, run: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser with what all commands take.

    Args:
        program: as the user calls it.
        description: the module's docstring; {prog} stands for the program.
        run: "?" where RUN may be left out.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=(description or "").replace("{prog}", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs=run, metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--root", type=Path, help="checkout whose results/ is meant; found by itself"
    )
    parser.add_argument("--debug", action="store_true", help="full tracebacks")
    return parser


def root_of(options: argparse.Namespace) -> Path:
    """Return the checkout."""
    return options.root.resolve() if options.root else site.root_dir()


def run_of(options: argparse.Namespace) -> RunFolder:
    """Return the run that the command line names.

    Raises:
        LaunchError: there is no such run.
    """
    root = root_of(options)
    try:
        return find_run(options.run, root)
    except LaunchError:
        if not options.run.isdigit() or getattr(options, "no_slurm", False):
            raise
        runs = _waiting_run(int(options.run), root)
        if not runs:
            raise
        return runs[0]


def _waiting_run(number: int, root: Path) -> list[RunFolder]:
    """Return the run of a job that has made no folder yet, [] where there is none."""
    scheduler = scheduler_or_none()
    job = scheduler.find(number) if scheduler else None
    return unfolded([job], [], root) if job else []


def scheduler_of() -> Scheduler:
    """Return the scheduler of this machine."""
    return Scheduler()


def scheduler_or_none(*, wanted: bool = True) -> Scheduler | None:
    """Return the scheduler, None where it is not wanted or not installed here."""
    return Scheduler() if wanted and shutil.which("squeue") else None


def guarded(command: Callable[[], int], options: argparse.Namespace) -> int:
    """Run a command; errors are one paragraph, Ctrl-C and a closed pipe are none."""
    debug = options.debug or env.flag("NEMO_RL_DEBUG")
    try:
        return driver.guarded(command, debug=debug)
    except BrokenPipeError:
        # `nemo-rl logs RUN | head`: nobody reads what is still in the buffer.
        sys.stderr.close()
        return 0


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Read the command line."""
    return parser.parse_intermixed_args(argv)
