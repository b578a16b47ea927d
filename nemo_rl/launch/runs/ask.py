"""`nemo-rl save` and `nemo-rl stop`: ask a training by a file of its run folder.

They reach a run on any node, in a container and without SLURM; the trainer looks
before every step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nemo_rl.infra.progress import duration
from nemo_rl.infra.touch_files import SAVE, STOP
from nemo_rl.launch.runs import cli
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.utils.exceptions import LaunchError

WAIT_S = 300.0
POLL_S = 0.5
_SAVE = """Let a running training save a checkpoint after its present step, and go on.

    {prog} 4711

The same as `touch SAVE` in the run folder.
"""
_STOP = """Let a run end after its present step as if that were the last: it saves,
exports where the recipe says so, and ends with 0. It is not requeued, and the links of
its chain find nothing to do.

    {prog} 4711

The same as `touch STOP` in the run folder. `nemo-rl cancel` ends a run sooner, does not
export and frees what waits in the queue.
"""


def save_main(argv: Sequence[str] | None = None, program: str = "nemo-rl save") -> int:
    """Command line: RUN [--wait SECONDS]."""
    parser = cli.make_parser(program, _SAVE)
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_S,
        metavar="SECONDS",
        help=f"how long to wait for the checkpoint ({WAIT_S:.0f})",
    )
    options = cli.parsed(parser, argv)
    return cli.guarded(lambda: save(cli.run_of(options), wait_s=options.wait), options)


def stop_main(argv: Sequence[str] | None = None, program: str = "nemo-rl stop") -> int:
    """Command line: RUN."""
    options = cli.parsed(cli.make_parser(program, _STOP), argv)
    return cli.guarded(lambda: stop(cli.run_of(options)), options)


def save(run: RunFolder, *, wait_s: float, say: Callable[[str], None] = print) -> int:
    """Ask for a checkpoint and wait for it; return the exit code.

    Args:
        run: the run.
        wait_s: seconds to wait; 0: none.
        say: prints a line.

    Raises:
        LaunchError: nobody trains, or it was not saved in time.
    """
    if run.attempts and not run.attempts[-1].seems_alive:
        raise LaunchError(
            f"{run.label} does not train now, its last attempt: "
            f"{run.attempts[-1].outcome}. The newest checkpoint is "
            f"{run.checkpoint[0] or 'none'}."
        )
    file = run.path / SAVE
    file.touch()
    say(f"asked {run.label} to save after its present step")
    deadline = time.monotonic() + wait_s
    while wait_s and file.exists():
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{file} was not obeyed within {duration(wait_s)}; the trainer looks "
                "before every step. The file stays; `nemo-rl logs` shows what it does."
            )
        time.sleep(POLL_S)
    if wait_s:
        say(f"checkpoint: {RunFolder(run.path).checkpoint[0] or 'none'}")
    return 0


def stop(run: RunFolder, *, say: Callable[[str], None] = print) -> int:
    """Ask for an orderly end; return the exit code.

    Args:
        run: the run.
        say: prints a line.
    """
    (run.path / STOP).touch()
    if run.attempts and not run.attempts[-1].seems_alive:
        say(f"{run.label} does not train now; if it starts again, it ends at once")
    else:
        say(f"asked {run.label} to save and end after its present step")
    return 0
