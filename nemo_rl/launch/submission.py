"""Hand jobs to SLURM: through submitit, or to sbatch for a test only.

submitit's executor submits our text instead of its own, so that a job is the same
whichever way it was submitted; it returns submitit's Job, whose result is what the
run's folder says.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_rl.distributed.rank import environment
from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.manifest import make_manifest
from nemo_rl.launch.record import LAUNCH
from nemo_rl.launch.request import Prepared, prepare
from nemo_rl.launch.script import render
from nemo_rl.launch.site import LOCAL, Site
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.files import write_json
from nemo_rl.utils.imports import require
from nemo_rl.utils.secrets import masked_overrides


def submit(
    recipe: str | Path,
    *,
    nodes: int | str | None = None,
    overrides: Sequence[str] | Mapping[str, object] = (),
    site: str | None = None,
    time: str | None = None,
    chain: int = 0,
    sweep: Sequence[str] | Mapping[str, Sequence[object]] = (),
    run_dir: Path | None = None,
) -> Any:
    """Submit a recipe to SLURM; return its Job, or with `sweep` a list of them.

    A Job is submitit's: `job_id`, `state`, `done()`, `wait()`, `result()`,
    `stdout()`, `cancel()`. `result()` waits and returns a dict with exit_code, step,
    checkpoint, metrics and run_dir; it raises submitit's FailedJobError where the run
    failed. `run_dir` is its folder.

    Example:
        >>> job = submit("grpo_llama8b", nodes=16, overrides={"grpo.seed": 3})
        >>> job.result()["checkpoint"]
        'results/grpo_llama8b/4711/checkpoints/step_000500'

    Args:
        recipe: name or path.
        nodes: cluster.num_nodes; "16+2" asks for two spare ones.
        overrides: "section.key=value" texts, or a mapping of keys to values.
        site: name of a launch/<site>.env.
        time: time limit, as in "04:00:00".
        chain: how many jobs follow, each when the one before it has ended, in the same
            run folder.
        sweep: "key=a,b,c" texts, or a mapping of keys to their values: one run per
            combination.
        run_dir: go on with the run of this folder.

    Raises:
        ConfigurationError: the recipe is wrong, or submitit is not installed.
        LaunchError: the job cannot be submitted; says why.
    """
    prepared = prepare(
        recipe,
        overrides=overrides,
        nodes=nodes,
        time=time,
        site=site,
        chain=chain,
        sweep=sweep,
        run_dir=run_dir,
    )
    jobs = submit_prepared(prepared)
    return jobs if prepared.groups else jobs[0]


def submit_prepared(prepared: Prepared) -> list[Any]:
    """Submit what was checked; return one Job per run.

    Raises:
        ConfigurationError: submitit is not installed.
        LaunchError: there is no SLURM here, sbatch refused the job, or the image or a
            mount is missing.
    """
    if prepared.site.name == LOCAL:
        raise LaunchError(
            "site local has no SLURM to submit to. Expected another site; on this "
            "machine run: nemo-rl launch RECIPE --local."
        )
    prepared.check_container()
    manifest = make_manifest(prepared)
    if prepared.chain:
        jobs = [_submit_chain(prepared)]
    elif prepared.first.sweep:
        jobs = _submit_array(prepared)
    else:
        jobs = [_submit_one(spec, prepared) for spec in prepared.specs]
    for index, job in enumerate(jobs):
        job.overrides = prepared.groups[index] if prepared.groups else ()
        job.manifest = manifest | {
            "job_ids": job.all_ids,
            "task_overrides": masked_overrides(job.overrides),
        }
        job.run_dir.mkdir(parents=True, exist_ok=True)
        write_json(job.run_dir / LAUNCH, job.manifest)
    return jobs


def _submit_one(spec: JobSpec, prepared: Prepared) -> Any:
    _require_slurm()
    require("submitit", instead="use --write and sbatch the script")
    executor = import_module("nemo_rl.launch.executor")
    core = import_module("submitit.core.utils")
    results = prepared.root / "results" / spec.name
    folder = results / "submitted"
    folder.mkdir(parents=True, exist_ok=True)
    place = environment(_variables(spec, prepared.site))
    try:
        with contextlib.chdir(prepared.root), place:
            job = executor.RecipeExecutor(folder, spec).submit_recipe()
    except (core.FailedJobError, core.FailedSubmissionError, RuntimeError) as error:
        raise LaunchError(_reason(str(error))) from error
    job.run_dir = Path(spec.run_dir) if spec.run_dir else results / job.job_id
    job.skip_log()
    return job


def _submit_array(prepared: Prepared) -> list[Any]:
    """One submission; a Job for each task of the array."""
    array = _submit_one(prepared.first, prepared)
    folder = array.run_dir.parent
    kind = type(array)
    kind.watcher.leave(array.job_id)
    return [
        kind(array.paths.folder, job_id, run_dir=folder / job_id)
        for job_id in (f"{array.job_id}_{k}" for k in range(len(prepared.groups)))
    ]


def _submit_chain(prepared: Prepared) -> Any:
    """The first job, then its successors in the first one's run folder."""
    job = _submit_one(prepared.first, prepared)
    for link in range(1, prepared.chain + 1):
        spec = replace(
            prepared.first, link=link, after=job.all_ids[-1], run_dir=str(job.run_dir)
        )
        try:
            job.add_successor(_submit_one(spec, prepared).job_id)
        except LaunchError as error:
            job.cancel(check=False)
            raise LaunchError(
                f"link {link} of the chain was not accepted; the {link} before it are "
                f"cancelled. {error}"
            ) from error
    return job


def ask_slurm(spec: JobSpec, *, root: Path, site: Site) -> str:
    """Ask slurmctld when and where the job would start; nothing is submitted.

    Raises:
        LaunchError: SLURM would not accept the job.
    """
    _require_slurm()
    done = subprocess.run(
        ["sbatch", "--test-only"],
        cwd=root,
        env=env.inherited() | _variables(spec, site),
        input=render(spec),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise LaunchError(_reason(done.stderr))
    return done.stderr.strip().removeprefix("sbatch: ")


def _require_slurm() -> None:
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise LaunchError(
                f"{program} is not installed here: run on a login node of the cluster, "
                "or use --local."
            )


def _variables(spec: JobSpec, site: Site) -> dict[str, str]:
    """The site's variables; of those that sbatch obeys before the script, the job's."""
    own = {"SBATCH_PARTITION": spec.partition, "SBATCH_ACCOUNT": spec.account}
    return dict(site.variables) | {k: v for k, v in own.items() if v is not None}


def _reason(text: str) -> str:
    """SLURM's own words, without the traceback a library puts around them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(("sbatch:", "error:"))]
    return "SLURM refused the job: " + " ".join(said or lines[-1:])
