"""run.json in the run folder: what was submitted, and which jobs worked on it.

Written at submission and completed when a job starts (a recipe's script may be given
to sbatch by hand). Beside it each attempt gets an attempt.json. No secrets: of the
environment only the variables named here, of overrides no value whose key names one.
"""

from __future__ import annotations

import getpass
import json
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.site import Site
from nemo_rl.utils import env
from nemo_rl.utils.files import write_json
from nemo_rl.utils.secrets import masked

RUN = "run.json"
ATTEMPT = "attempt.json"
FORMAT = 1
RECORDED = (
    *("NEMO_RL_ROOT", "NEMO_RL_SITE", "NEMO_RL_PYTHON", "NEMO_RL_TMPDIR"),
    *("NEMO_RL_CONTAINER_RUNTIME", "NEMO_RL_CONTAINER", "NEMO_RL_CONTAINER_MOUNTS"),
    *("NEMO_RL_SRUN_ARGS", "NEMO_RL_MAX_ATTEMPTS", "NEMO_RL_START_TIMEOUT"),
    *("NCCL_IB_HCA", "NCCL_NET", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"),
)
"""Variables of the environment that are written down; no others are."""
_GIT_LIMIT_S = 5.0


def record_submission(
    folder: Path,
    spec: JobSpec,
    job_ids: Sequence[int | str],
    *,
    root: Path,
    site: Site,
) -> Path:
    """Write run.json after jobs were submitted; return its path.

    Args:
        folder: the run folder; made where it is not there yet.
        spec: what was submitted.
        job_ids: the job, or all jobs of a chain in their order. Those of an earlier
            submission that went on in the same folder are kept.
        root: the checkout.
        site: the cluster.
    """
    environment = _recorded(env.inherited() | dict(site.variables))
    image = environment.get("NEMO_RL_CONTAINER") or spec.container
    facts = {
        "name": spec.name,
        "recipe": spec.recipe,
        "title": spec.title,
        "overrides": mask_overrides(spec.overrides),
        "site": spec.site,
        "nodes": spec.nodes,
        "gpus_per_node": spec.gpus_per_node,
        "time_limit": spec.time,
        "submitted_at": time.time(),
        "environment": environment,
        "container": image_facts(image),
    }
    return _merge(folder, facts | _common(root), job_ids)


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
    if allocation.job_id in known.get("jobs", ()):
        return
    root = Path(environment.get("NEMO_RL_ROOT") or Path.cwd())
    facts = {
        "name": Path(recipe).stem,
        "recipe": recipe,
        "overrides": mask_overrides(overrides),
        "site": environment.get("NEMO_RL_SITE", ""),
        "nodes": allocation.num_nodes,
        "gpus_per_node": allocation.num_gpus,
        "environment": environment,
        "container": image_facts(environment.get("NEMO_RL_CONTAINER")),
    }
    if not known:
        facts |= _common(root)
    # What was written at submission knows more than a job does.
    _merge(run_dir, facts | known, [allocation.job_id])


def read(folder: Path, name: str = RUN) -> dict[str, Any]:
    """Return a manifest; {} where there is none, or none that can be read."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def mask_overrides(overrides: Sequence[str]) -> list[str]:
    """Return "key=value" texts without the values of keys that name a secret.

    Example:
        >>> mask_overrides(["grpo.seed=3", "logger.wandb.api_key=1234"])
        ['grpo.seed=3', 'logger.wandb.api_key=***']
    """
    found = []
    for text in overrides:
        key, _, value = text.partition("=")
        last = key.rpartition(".")[2]
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = value
        shown = masked({last: parsed if parsed is not None else value})[last]
        same = shown == parsed or parsed is None
        hidden = "***" if shown == "***" else json.dumps(shown, default=str)
        found.append(text if same and shown != "***" else f"{key}={hidden}")
    return found


def image_facts(image: str | None) -> dict[str, Any] | None:
    """Return name and, where they are cheap to know, digest, size and time of an image.

    A digest stands in the name (...@sha256:...) or in a file <image>.sha256 beside
    it; an image of many gigabytes is not read for it.
    """
    if not image:
        return None
    facts: dict[str, Any] = {"image": image, "digest": None}
    if match := re.search(r"@(sha256:[0-9a-f]{64})$", image):
        facts["digest"] = match[1]
    path = Path(image)
    try:
        status = path.stat()
        facts |= {"bytes": status.st_size, "changed_at": status.st_mtime}
        words = path.with_name(path.name + ".sha256").read_text().split()
        facts["digest"] = f"sha256:{words[0]}" if words else None
    except (OSError, UnicodeDecodeError):
        return facts
    return facts


def _recorded(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: variables[name] for name in RECORDED if variables.get(name)}


def _common(root: Path) -> dict[str, Any]:
    return {"root": str(root), "user": getpass.getuser(), "git": git_state(root)}


def git_state(root: Path) -> dict[str, Any] | None:
    """Return commit and whether files differ from it; None outside a repository."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": changed != "" if changed is not None else None}


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


def _merge(folder: Path, facts: dict[str, Any], job_ids: Sequence[int | str]) -> Path:
    """Write facts over run.json; job numbers are added to those it has."""
    folder.mkdir(parents=True, exist_ok=True)
    known = read(folder)
    jobs = [*known.get("jobs", ()), *map(int, job_ids)]
    content = known | facts | {"format": FORMAT, "jobs": list(dict.fromkeys(jobs))}
    # When the run began stays, also where it is continued.
    if "submitted_at" in known:
        content["submitted_at"] = known["submitted_at"]
    path = folder / RUN
    write_json(path, content)
    return path
