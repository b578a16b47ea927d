"""Hand a job script to SLURM: through submitit, or to sbatch for a test only.

submitit's executor submits our text instead of its own, so that a job is the same
whichever way it was submitted; it returns submitit's Job.
"""

from __future__ import annotations

import contextlib
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_rl.distributed.rank import environment
from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.scheduler import Scheduler
from nemo_rl.launch.script import render
from nemo_rl.launch.site import Site
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.imports import require

POLL_S = 5.0


def submit(spec: JobSpec, *, root: Path, site: Site) -> Any:
    """Submit a job from the checkout; return submitit's Job.

    Its `job_id`, `state` and `cancel()` are of use. There is no pickled result: what
    the run gives lies in its folder.

    Args:
        spec: the job.
        root: the checkout; SLURM_SUBMIT_DIR of the job.
        site: its SBATCH_* variables reach sbatch.

    Raises:
        ConfigurationError: submitit is not installed.
        LaunchError: there is no SLURM here, or sbatch refused the job.
    """
    require("submitit", instead="use --write and sbatch the script")
    slurm = import_module("submitit.slurm.slurm")
    core = import_module("submitit.core.utils")

    class RecipeExecutor(slurm.SlurmExecutor):
        """A SlurmExecutor whose submission file is the rendered recipe."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return render(spec)

        def _num_tasks(self) -> int:
            return spec.nodes

    folder = root / "results" / spec.name / "submitted"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.chdir(root), environment(dict(site.variables)):
            return RecipeExecutor(folder)._submit_command("unused")
    except (core.FailedJobError, core.FailedSubmissionError, RuntimeError) as error:
        raise LaunchError(_reason(str(error))) from error


def ask_slurm(spec: JobSpec, *, root: Path, site: Site) -> str:
    """Ask slurmctld when and where the job would start; nothing is submitted.

    Raises:
        LaunchError: SLURM would not accept the job.
    """
    done = _run(["sbatch", "--test-only"], root, site, text=render(spec))
    if done.returncode:
        raise LaunchError(_reason(done.stderr))
    return done.stderr.strip().removeprefix("sbatch: ")


def wait_for(job_id: str, *, root: Path, site: Site) -> int:
    """Wait for a job; return its exit code.

    Raises:
        LaunchError: SLURM does not know the job any more, or has been silent for long.
    """
    scheduler = Scheduler(site.variables, root)
    return scheduler.wait(int(job_id), poll_s=POLL_S).exit_code or 0


def _run(
    command: list[str], root: Path, site: Site, *, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=root,
            env=env.inherited() | dict(site.variables),
            input=text,
            text=True,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise LaunchError(
            f"{command[0]} is not installed here: run on a login node of the cluster, "
            "or use --site local."
        ) from None


def _reason(text: str) -> str:
    """SLURM's own words, without the traceback a library puts around them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("sbatch:", "error:"))]
    return "SLURM refused the job: " + " ".join(said or lines[-1:])
