"""A JobSpec as the text of a job script: a header for sbatch, then slurm/job.sh.

A pure function; recipes/*.sh are its recorded results.
"""

from __future__ import annotations

import shlex

from nemo_rl.launch.job import SAVE_SECONDS, JobSpec
from nemo_rl.launch.site import DEFAULT


def render(spec: JobSpec) -> str:
    """Return the script.

    USR2 warns the batch shell (B:), not the steps, and is not USR1, which NCCL may
    take. The output's folder exists (the one sbatch is called in): a job whose output
    cannot be opened dies without a word. slurm/job.sh then writes into the run folder.
    """
    shared = spec.cpus_per_node is not None
    options = {
        "job-name": spec.name,
        "nodes": spec.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": spec.gpus_per_node or None,
        "partition": spec.partition,
        "account": spec.account,
        "exclusive": None if shared else True,
        "cpus-per-task": spec.cpus_per_node,
        "mem": spec.memory_per_node if shared else 0,
        "time": spec.time,
        "signal": f"B:USR2@{SAVE_SECONDS}",
        "requeue": True if spec.link is None else None,
        "no-requeue": None if spec.link is None else True,
        "dependency": f"afterany:{spec.after}" if spec.after else None,
        "array": f"0-{len(spec.sweep) - 1}" if spec.sweep else None,
        "open-mode": "append",
        "output": "slurm-%x-%A_%a.log" if spec.sweep else "slurm-%x-%j.log",
    }
    lines = ["#!/bin/bash"]
    if spec.title:
        lines.append(f"# {spec.title}")
    lines += _provenance(spec)
    for name, value in options.items():
        if value is not None:
            flag = f"--{name}" if value is True else f"--{name}={value}"
            lines.append(f"#SBATCH {flag}")
    lines.append(f"RECIPE={shlex.quote(spec.recipe)}")
    if spec.overrides:
        lines.append(f"OVERRIDES=({shlex.join(spec.overrides)})")
    if spec.sweep:
        lines += _tasks(spec)
    if spec.link is not None:
        lines.append(f"export NEMO_RL_CHAIN_LINK={spec.link}")
    if spec.site != DEFAULT:
        lines.append(f"export NEMO_RL_SITE={spec.site}")
    if spec.container:
        image = shlex.quote(spec.container)
        # Outside double quotes: inside them those around the image would stay.
        lines.append(f"export NEMO_RL_CONTAINER=${{NEMO_RL_CONTAINER:-{image}}}")
    if spec.run_dir:
        lines.append(f"export NEMO_RL_RUN_DIR={shlex.quote(spec.run_dir)}")
    cure = f"submit from the checkout: sbatch recipes/{spec.name}.sh"
    lines.append(f'source "${{SLURM_SUBMIT_DIR:?{cure}}}/slurm/job.sh" "$@"')
    return "\n".join(lines) + "\n"


def _tasks(spec: JobSpec) -> list[str]:
    """Each task of a job array adds its own overrides and has its own run folder."""
    first = [] if spec.overrides else ["OVERRIDES=()"]
    cases = [
        f"    {index}) OVERRIDES+=({shlex.join(group)}) ;;"
        for index, group in enumerate(spec.sweep)
    ]
    task = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    folder = f"${{NEMO_RL_ROOT:-$SLURM_SUBMIT_DIR}}/results/{spec.name}/{task}"
    unknown = 'echo "no task $SLURM_ARRAY_TASK_ID in this script" >&2; exit 2'
    return [
        *first,
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        f"    *) {unknown} ;;",
        "esac",
        f'export NEMO_RL_RUN_DIR="{folder}"',
    ]


def _provenance(spec: JobSpec) -> list[str]:
    own = (spec.overrides, spec.run_dir, spec.sweep, spec.link is not None)
    if any(own) or spec.site != DEFAULT:
        return ["# Written by python -m nemo_rl.launch for one submission."]
    return [
        f"# Written by: python -m nemo_rl.launch {spec.recipe} --write",
        "# (edit the .yaml, then run it again)",
    ]
