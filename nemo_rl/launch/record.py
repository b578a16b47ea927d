"""run.json and attempt.json: what a job writes down about itself as it starts.

A recipe's script may be given to sbatch by hand, so that only the job knows. Where the
launcher submitted it, its launch.json is read first: it knows more. No secrets: of the
environment only the variables named here, of overrides no value whose key names one.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rl.launch.allocation import Allocation
from nemo_rl.utils import env
from nemo_rl.utils.files import write_json
from nemo_rl.utils.secrets import masked_overrides

RUN = "run.json"
LAUNCH = "launch.json"
"""Written by the launcher when it submits."""
ATTEMPT = "attempt.json"
FORMAT = 1
RECORDED = (
    *("NEMO_RL_ROOT", "NEMO_RL_SITE", "NEMO_RL_PYTHON", "NEMO_RL_TMPDIR"),
    *("NEMO_RL_CONTAINER_RUNTIME", "NEMO_RL_CONTAINER", "NEMO_RL_CONTAINER_MOUNTS"),
    *("NEMO_RL_IMAGE_BYTES", "NEMO_RL_IMAGE_SHA256", "NEMO_RL_CACHE", "HF_HOME"),
    *("NEMO_RL_SRUN_ARGS", "NEMO_RL_MAX_ATTEMPTS", "NEMO_RL_START_TIMEOUT"),
    *("NCCL_IB_HCA", "NCCL_NET", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
)
"""Variables of the environment that are written down; no others are."""
_GIT_LIMIT_S = 5.0


def record_start(
    run_dir: Path,
    attempt_dir: Path,
    allocation: Allocation,
    *,
    recipe: str,
    overrides: Sequence[str],
    temp_dir: Path,
) -> None:
    """Write attempt.json, and what run.json does not have yet. On the head node.

    Args:
        run_dir: the run folder.
        attempt_dir: the attempt's folder.
        allocation: what SLURM gave.
        recipe: path of the YAML file.
        overrides: "section.key=value" texts.
        temp_dir: node-local folder of this node, where Ray writes its logs.
    """
    environment = _recorded(env.inherited())
    write_json(
        attempt_dir / ATTEMPT,
        {
            "job_id": allocation.job_id,
            "node_names": list(allocation.node_names),
            "num_gpus": allocation.num_gpus,
            "num_cpus": allocation.num_cpus,
            "started_at": time.time(),
            "temp_dir": str(temp_dir),
            "environment": environment,
        },
    )
    known = read(run_dir)
    jobs = known.get("jobs", [])
    if allocation.job_id in jobs:
        return
    facts = {
        "format": FORMAT,
        "name": Path(recipe).stem,
        "recipe": recipe,
        "overrides": masked_overrides(overrides),
        "site": environment.get("NEMO_RL_SITE", ""),
        "nodes": allocation.num_nodes,
        "gpus_per_node": allocation.num_gpus,
        "container": environment.get("NEMO_RL_CONTAINER"),
        "image_sha256": environment.get("NEMO_RL_IMAGE_SHA256"),
        "image_bytes": int(environment.get("NEMO_RL_IMAGE_BYTES", 0)) or None,
        "root": environment.get("NEMO_RL_ROOT") or str(Path.cwd()),
    }
    if not known and not (run_dir / LAUNCH).exists():
        facts["commit"], facts["modified"] = git_state(Path(facts["root"]))
    jobs = [*jobs, allocation.job_id]
    write_json(run_dir / RUN, known | facts | {"jobs": jobs})


def read_run(folder: Path) -> dict[str, Any]:
    """Return what is known of a run, in the words of run.json; {} of no run.

    `jobs` are texts: of an array's task "17_0".
    """
    facts = read(folder)
    jobs = [str(number) for number in facts.get("jobs", ())]
    launched = read(folder, LAUNCH)
    if launched:
        recipe, code = launched.get("recipe") or {}, launched.get("code") or {}
        image = launched.get("container") or {}
        words = [*recipe.get("overrides", ()), *launched.get("task_overrides", ())]
        facts |= {
            "name": launched.get("name"),
            "recipe": recipe.get("path"),
            "overrides": masked_overrides(words),
            "site": (launched.get("site") or {}).get("name"),
            "nodes": launched.get("nodes"),
            "gpus_per_node": launched.get("gpus_per_node"),
            "container": image.get("image"),
            "image_sha256": image.get("sha256") or facts.get("image_sha256"),
            "image_bytes": image.get("bytes") or facts.get("image_bytes"),
            "commit": code.get("commit"),
            "modified": code.get("modified"),
            "submitted_at": changed_at(folder / LAUNCH),
        }
        jobs = [*map(str, launched.get("job_ids", ())), *jobs]
    if facts:
        facts["jobs"] = list(dict.fromkeys(jobs))
    return facts


def read(folder: Path, name: str = RUN) -> dict[str, Any]:
    """Return a manifest; {} where there is none, or none that can be read."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _recorded(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: variables[name] for name in RECORDED if variables.get(name)}


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """Return commit and whether files differ from it; None where it is no checkout.

    A repository around an installed copy is somebody else's.
    """
    if not (root / ".git").exists():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changed is None else changed != ""


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_GIT_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.strip()


def changed_at(path: Path) -> float | None:
    """Return when a file was last changed, in seconds since 1970; None: no file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
