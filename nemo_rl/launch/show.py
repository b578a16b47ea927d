"""What the launcher prints: a submission before, after, and when its runs have ended.

For people, or as one JSON document for programs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from nemo_rl.launch.follow import follow
from nemo_rl.launch.manifest import make_manifest
from nemo_rl.launch.request import Prepared
from nemo_rl.launch.script import render
from nemo_rl.launch.sweep import table


def show(prepared: Prepared, *, as_json: bool) -> int:
    """Print what would be submitted; nothing is written or asked."""
    scripts = [render(spec) for spec in (prepared.first, *prepared.specs[1:])]
    manifest = make_manifest(prepared)
    config = prepared.config.to_dict()
    if as_json:
        shown = {"configuration": config, "scripts": scripts, "manifest": manifest}
        print(json.dumps(shown, indent=2, default=str))
        return 0
    print(yaml.safe_dump(config, sort_keys=False))
    print("\n".join(scripts))
    print("# manifest")
    print(yaml.safe_dump(manifest, sort_keys=False))
    if prepared.groups:
        print(table(prepared.groups, [str(k) for k in range(len(prepared.groups))]))
    print(
        f"# at most {manifest['node_hours']} node-hours, {manifest['gpu_hours']} "
        f"GPU-hours: {_count(manifest['jobs'], 'job')} of "
        f"{_count(prepared.first.nodes, 'node')}, {prepared.first.time} each"
    )
    return 0


def say_submitted(jobs: Sequence[Any], prepared: Prepared, *, as_json: bool) -> None:
    """Say what was submitted, and where its log will be."""
    if as_json:
        keys = ("job_ids", "task_overrides")
        rows = [
            {"run_dir": str(job.run_dir), **{key: job.manifest[key] for key in keys}}
            for job in jobs
        ]
        print(json.dumps(rows, indent=2))
        return
    first = jobs[0]
    if prepared.groups:
        print(f"submitted {len(jobs)} runs; logs: {first.run_dir.parent}/<run>/job.log")
        print(table(prepared.groups, [job.job_id for job in jobs]))
        return
    folder = first.run_dir
    if folder.is_relative_to(prepared.root):
        folder = folder.relative_to(prepared.root)
    print(
        f"submitted job {first.job_id}: {_count(prepared.first.nodes, 'node')}; "
        f"log: {folder}/job.log"
    )
    print(f"look after it: nemo-rl status|logs|cancel {first.job_id}")
    if first.successors:
        print(f"then, each after the one before it: {', '.join(first.successors)}")
        print(f"to end all of them: scancel {' '.join(reversed(first.all_ids))}")


def see_to_the_end(jobs: Sequence[Any], *, follow_log: bool, as_json: bool) -> int:
    """Wait or follow, say how each run ended, return the worst exit code."""
    try:
        codes = [follow(jobs[0])] if follow_log else [j.exit_code() for j in jobs]
    except KeyboardInterrupt:
        ids = " ".join(job_id for job in jobs for job_id in reversed(job.all_ids))
        print(f"\nnot cancelled; to do that: scancel {ids}", file=sys.stderr)
        raise
    ends = [job.summary() for job in jobs]
    if as_json:
        print(json.dumps(ends, indent=2))
        return max(codes)
    for code, end in zip(codes, ends, strict=True):
        # SLURM may still be tidying up after a job that has told its exit code.
        killed = f", {end['state']}" if end["exit_code"] is None else ""
        print(
            f"job {end['job_id']} ended with exit code {code}{killed}: step "
            f"{end['step'] or 0}, checkpoint {end['checkpoint'] or 'none'}"
        )
    return max(codes)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
