"""End a run: it saves a checkpoint first, and its chain ends with it.

    {prog} 4711               save, then end; at most --grace seconds
    {prog} 4711 --now         at once; what was learned since the last save is lost

Jobs that wait for this one are cancelled, too. `nemo-rl launch RECIPE --run-dir FOLDER`
goes on from the checkpoint.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence

from nemo_rl.infra.progress import duration
from nemo_rl.launch.job import SAVE_SECONDS
from nemo_rl.launch.runs import cli
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.launch.runs.state import RunState, look
from nemo_rl.launch.scheduler import Scheduler
from nemo_rl.launch.slurm_text import Job
from nemo_rl.launch.watch import PREEMPT
from nemo_rl.utils.exceptions import LaunchError

CANCEL = "CANCEL"
"""File in the run folder: `slurm/job.sh` does not requeue what ends with 75."""
POLL_S = 1.0
ENDING_S = 20.0
"""A job whose trainer has saved gets this long to end by itself."""


def main(argv: Sequence[str] | None = None, program: str = "nemo-rl cancel") -> int:
    """Command line: RUN [--grace SECONDS | --now]."""
    parser = cli.make_parser(program, __doc__)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--grace",
        type=float,
        default=float(SAVE_SECONDS),
        metavar="SECONDS",
        help=f"how long it may take to save ({SAVE_SECONDS})",
    )
    how.add_argument("--now", action="store_true", help="do not save")
    options = cli.parsed(parser, argv)

    def run() -> int:
        folder = cli.run_of(options)
        grace = 0.0 if options.now else options.grace
        return cancel(folder, cli.scheduler_of(), grace_s=grace)

    return cli.guarded(run, options)


def cancel(
    run: RunFolder,
    scheduler: Scheduler,
    *,
    grace_s: float,
    say: Callable[[str], None] = print,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """End a run's jobs; return the exit code.

    Args:
        run: the run.
        scheduler: SLURM.
        grace_s: seconds the running job has to save; 0: none.
        say: prints a line.
        sleep: waits; for tests.

    Raises:
        SchedulerUnreachable: SLURM does not answer; nothing was cancelled.
        LaunchError: no job of it waits or runs.
    """
    state = look([run], scheduler)[0]
    waiting, running = _open_jobs(state)
    if not waiting and not running:
        raise LaunchError(f"{run.label} is {state.state}: none of its jobs is alive.")
    # First what would start once the running job has ended.
    if waiting:
        targets = _targets(run, waiting)
        scheduler.cancel(targets)
        say(f"cancelled {_named(targets)}, waiting")
    if not running:
        return 0
    if grace_s > 0 and run.attempts:
        _save(state, scheduler, grace_s, say=say, sleep=sleep)
    rest = [n for n in running if _alive(scheduler, n)]
    if rest:
        targets = _targets(run, rest)
        scheduler.cancel(targets)
        say(f"cancelled {_named(targets)}")
    say(f"{_named(_targets(run, running))} ended")
    path, _ = RunFolder(run.path).checkpoint
    say(f"last checkpoint: {path or 'none'}")
    if path and run.facts.get("recipe"):
        words = [run.facts["recipe"], *run.facts.get("overrides", ())]
        words += ["--run-dir", str(run.path)]
        say(f"to go on: nemo-rl launch {shlex.join(words)}")
    return 0


def dependents(jobs: Mapping[int, Job], roots: Sequence[int]) -> list[int]:
    """Return the jobs that wait for `roots`, and those that wait for these."""
    found: list[int] = []
    frontier = {str(number) for number in roots}
    while frontier:
        following = {
            number
            for number, job in jobs.items()
            if job.is_waiting
            and number not in found
            and number not in roots
            and frontier & set(_numbers(job.dependency))
        }
        found += sorted(following)
        frontier = {str(number) for number in following}
    return found


def _numbers(dependency: str) -> list[str]:
    """Return ["17", "18"] for "afterany:17(unfulfilled):18_*,afterok:...".

    Which of the kinds it is does not matter: it waits for that job.
    """
    words = dependency.replace(",", ":").replace("?", ":").split(":")
    return [
        word.partition("(")[0].partition("_")[0].partition("+")[0] for word in words
    ]


def _open_jobs(state: RunState) -> tuple[list[int], list[int]]:
    own = state.open_jobs
    alive = [*own, *dependents(state.jobs, own)]
    waiting = [n for n in alive if state.jobs[n].is_waiting]
    return waiting, [n for n in alive if n not in waiting]


def _save(
    state: RunState,
    scheduler: Scheduler,
    grace_s: float,
    *,
    say: Callable[[str], None],
    sleep: Callable[[float], None],
) -> None:
    """Ask the trainer to save and end, and wait for it."""
    run = state.run
    attempt = run.attempts[-1]
    training = run.training
    say(f"asking job {attempt.job_id} to save and end; at most {duration(grace_s)}")
    if training and training.step_s and training.step_s > grace_s:
        say(
            f"it saves at the end of a step, and a step takes {training.step_s:.0f} s: "
            "consider a longer --grace"
        )
    # In this order: who sees the second already finds the first.
    (run.path / CANCEL).touch()
    (run.path / PREEMPT).touch()
    began = time.monotonic()
    ended_at: float | None = None
    while True:
        now = time.monotonic()
        fresh = RunFolder(run.path)
        if ended_at is None and fresh.attempts[-1].exit_code is not None:
            ended_at = now
            say(f"the trainer ended after {now - began:.0f} s")
        if ended_at is not None and now - ended_at > ENDING_S:
            return
        if ended_at is None and now - began > grace_s:
            say(f"it did not save within {duration(grace_s)}")
            return
        # The file tells of the usual end; SLURM only of one without it.
        if (ended_at is not None or int(now - began) % 10 == 9) and not _alive(
            scheduler, attempt.job_id
        ):
            return
        sleep(POLL_S)


def _targets(run: RunFolder, numbers: Sequence[int]) -> list[str]:
    """What to call jobs by: the number of a task may be that of its whole array."""
    return [run.array_task] if run.array_task else [str(n) for n in numbers]


def _alive(scheduler: Scheduler, number: int) -> bool:
    job = scheduler.find(number)
    return job is not None and not job.has_ended


def _named(targets: Sequence[str]) -> str:
    return f"job{'s' if len(targets) > 1 else ''} {', '.join(targets)}"
