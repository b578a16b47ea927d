"""From what a user types to a run folder: a job's number, a path, `<recipe>/<job id>`.

Reads folders only; asks no scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from nemo_rl.launch.record import LAUNCH, changed_at
from nemo_rl.launch.runs.attempt import text_of
from nemo_rl.launch.runs.folder import ATTEMPTS, RunFolder, is_run
from nemo_rl.launch.slurm_text import Job
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.suggest import did_you_mean

RESULTS = "results"
_SHOWN = 5
_LOG_LINE = re.compile(r"; log in (.+)/job\.log$", re.M)


def all_runs(root: Path) -> list[RunFolder]:
    """Return the runs below results/ of a checkout, the newest first."""
    runs = [
        RunFolder(path)
        for path in (root / RESULTS).glob("*/*")
        if path.is_dir() and is_run(path)
    ]
    return sorted(runs, key=_age, reverse=True)


def find_run(text: str, root: Path) -> RunFolder:
    """Return the run that a text names.

    Args:
        text: a job's number, the path of a run folder or of something in it,
            `<recipe>/<job id>`.
        root: the checkout.

    Raises:
        LaunchError: there is no such run; names those there are.
    """
    for path in (Path(text).expanduser(), root / RESULTS / text):
        for folder in (path, *path.parents[:2]):
            if path.exists() and folder.is_dir() and is_run(folder):
                return RunFolder(folder.resolve())
    for path in (root / RESULTS).glob(f"*/{text}") if "/" not in text else ():
        if is_run(path):
            return RunFolder(path)
    number = text.partition(".")[0].partition("_")[0]
    if number.isdigit():
        found = _of_job(int(number), root)
        if found is not None:
            return found
    raise LaunchError(_no_run(text, root))


def unfolded(
    jobs: Iterable[Job], known: Iterable[RunFolder], root: Path
) -> list[RunFolder]:
    """Return the runs of jobs whose folder is not there yet.

    A recipe's script that was given to sbatch by hand makes its folder when it
    starts. Such a job has the name of a recipe.
    """
    numbers = {number for run in known for number in run.job_ids}
    return [
        RunFolder(root / RESULTS / job.name / str(job.job_id))
        for job in sorted(jobs, key=lambda job: -job.job_id)
        if job.job_id not in numbers
        and not job.has_ended
        and (root / "recipes" / f"{job.name}.yaml").is_file()
    ]


def _of_job(number: int, root: Path) -> RunFolder | None:
    for run in all_runs(root):
        if number in run.job_ids:
            return run
    # A run folder of the user's choice: the job's own output says where it is.
    for path in root.glob(f"slurm-*-{number}.log"):
        for place in reversed(_LOG_LINE.findall(text_of(path))):
            if is_run(Path(place)):
                return RunFolder(Path(place))
    return None


def _no_run(text: str, root: Path) -> str:
    labels = [run.label for run in all_runs(root)]
    if not labels:
        return (
            f"no run {text}: {root / RESULTS} holds none. Expected a job's number, "
            "<recipe>/<job id> or the path of a run folder."
        )
    near = [label for label in labels if label.startswith(f"{text}/")]
    shown = ", ".join((near or labels)[:_SHOWN])
    which = "Its runs" if near else "The newest runs"
    guess = "" if near else did_you_mean(text, labels)
    return (
        f"no run {text} below {root / RESULTS}.{guess} {which}: {shown}. Expected a "
        "job's number, <recipe>/<job id> or the path of a run folder."
    )


def _age(run: RunFolder) -> float:
    """When it was submitted or last began; nothing is opened, runs may be many."""
    places = (run.path / LAUNCH, run.path / ATTEMPTS)
    times = [when for place in places if (when := changed_at(place)) is not None]
    return max(times, default=changed_at(run.path) or 0.0)
