"""Checks on a login node: SLURM, the site's limits, image, mounts, secrets.

What only a compute node can tell is left to the job, which looks first thing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rl.launch import submission
from nemo_rl.launch.container import image_file
from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.preflight.checks import (
    USER,
    WARN,
    Check,
    Context,
    Finding,
    bad,
    ok,
    skipped,
)
from nemo_rl.launch.site import GPUS_PER_NODE, Site
from nemo_rl.launch.slurm_text import seconds_of
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.secrets import key_is_secret, variable_is_secret
from nemo_rl.utils.suggest import did_you_mean

ASK_S = 8.0
KNOWN = {
    *("NEMO_RL_PYTHON", "NEMO_RL_RUN_DIR", GPUS_PER_NODE, "NEMO_RL_TMPDIR"),
    *("NEMO_RL_CONTAINER_RUNTIME", "NEMO_RL_CONTAINER", "NEMO_RL_CONTAINER_MOUNTS"),
    *("NEMO_RL_SRUN_ARGS", "NEMO_RL_START_TIMEOUT", "NEMO_RL_MAX_ATTEMPTS"),
    "NEMO_RL_TIME_LIMIT_POLL",
}
"""Variables of a site that bash reads; `utils.env` has the others."""


def _ask(context: Context, *command: str) -> tuple[int, str]:
    """Return exit code and words of one of SLURM's programs; 127 if it is not here."""
    try:
        done = subprocess.run(
            command,
            env=dict(context.variables),
            text=True,
            capture_output=True,
            timeout=ASK_S,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed here"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} did not answer in {ASK_S:.0f} s"
    return done.returncode, (done.stdout.strip() or done.stderr.strip())


def slurm(context: Context) -> Finding:
    """Whether slurmctld answers, and which version it is."""
    limit = "20.11 or newer, answering"
    code, text = _ask(context, "sinfo", "--version")
    if code:
        cure = "run on a login node of the cluster, or use --site local"
        return bad(text, limit, cure)
    version = text.removeprefix("slurm ")
    code, state = _ask(context, "scontrol", "ping")
    if code or " is UP" not in state:
        return bad(f"{version}: {state}", limit, "slurmctld is down: ask its operators")
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    code, _ = _ask(context, "sacctmgr", "--noheader", "show", "cluster")
    records = "with" if code == 0 else "without"
    text = f"{version}, {records} accounting"
    if number and number < (20, 11):
        return bad(text, limit, "not tested with so old a SLURM", verdict=WARN)
    return ok(text, limit)


def partition(context: Context) -> Finding:
    """Whether the partition is up and allows the recipe's time, nodes and GPUs."""
    spec: JobSpec | None = context.extra.get("spec")
    if spec is None:
        return skipped("no recipe")
    name = spec.partition or context.variables.get("SBATCH_PARTITION")
    words = ["scontrol", "--oneliner", "show", "partition", *([name] if name else [])]
    code, text = _ask(context, *words)
    if code:
        cure = "see sinfo; set cluster.partition, or SBATCH_PARTITION of the site"
        return bad(f"{name}: {text}", "a partition", cure, blame=USER)
    # Without a name, the default one.
    lines = text.splitlines()
    line = next((one for one in lines if name or " Default=YES" in one), lines[0])
    facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
    wrong = _beyond(spec, facts)
    per_node = _gpus_of(context, facts["PartitionName"])
    if per_node is not None and spec.gpus_per_node > per_node:
        wrong.append(f"{spec.gpus_per_node} GPUs per node, its nodes have {per_node}")
    measured = (
        f"{facts['PartitionName']} {facts.get('State')}, "
        f"{facts.get('TotalNodes')} nodes, time {facts.get('MaxTime')}, "
        f"GPUs {'?' if per_node is None else per_node}"
    )
    limit = f"{spec.nodes} nodes x {spec.gpus_per_node} GPUs for {spec.time}"
    if wrong:
        cure = "change cluster.partition, num_nodes, gpus_per_node or time"
        return bad(f"{measured}: {'; '.join(wrong)}", limit, cure, blame=USER)
    return ok(measured, limit)


def _beyond(spec: JobSpec, facts: Mapping[str, str]) -> list[str]:
    """What the recipe asks beyond what the partition allows."""
    wrong = []
    if facts.get("State", "UP") != "UP":
        wrong.append(f"it is {facts['State']}")
    allowed, asked = seconds_of(facts.get("MaxTime", "")), seconds_of(spec.time)
    if allowed is not None and (asked or 0) > allowed:
        wrong.append(f"time {spec.time} is beyond {facts['MaxTime']}")
    for key in ("MaxNodes", "TotalNodes"):
        number = facts.get(key, "")
        if number.isdigit() and spec.nodes > int(number):
            wrong.append(f"{spec.nodes} nodes are beyond {key}={number}")
    accounts = facts.get("AllowAccounts", "ALL")
    if accounts != "ALL" and spec.account and spec.account not in accounts.split(","):
        wrong.append(f"account {spec.account} is not among {accounts}")
    return wrong


def _gpus_of(context: Context, name: str) -> int | None:
    code, text = _ask(context, "sinfo", "-h", "-p", name, "-o", "%G")
    if code:
        return None
    counts = [
        sum(int(n) for n in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", line))
        for line in text.splitlines()
    ]
    return max(counts, default=None)


def account(context: Context) -> Finding:
    """Whether the user may charge the account."""
    spec: JobSpec | None = context.extra.get("spec")
    asked = spec.account if spec else None
    name = asked or context.variables.get("SBATCH_ACCOUNT")
    if not name:
        return skipped("no account asked for")
    user = context.variables.get("USER", "")
    words = ["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account"]
    code, text = _ask(context, *words)
    if code:
        return skipped("no accounting to ask")
    mine = sorted(set(text.split()))
    if name in mine:
        return ok(name, "one of yours")
    cure = "set cluster.account, or SBATCH_ACCOUNT of the site"
    return bad(f"{name}; yours: {', '.join(mine) or 'none'}", "yours", cure, blame=USER)


def accepted(context: Context) -> Finding:
    """Whether SLURM would take the job."""
    spec: JobSpec | None = context.extra.get("spec")
    if spec is None:
        return skipped("no recipe")
    try:
        text = submission.ask_slurm(
            spec, root=context.extra["root"], site=context.extra["site"]
        )
    except LaunchError as error:
        return bad(str(error), "accepted", "change what it complains of", blame=USER)
    return ok(text[:100], "accepted")


def image(context: Context) -> Finding:
    """Whether the container's image is there and its runtime installed."""
    runtime = context.variables.get("NEMO_RL_CONTAINER_RUNTIME", "none")
    if runtime == "none":
        return skipped("no container")
    spec: JobSpec | None = context.extra.get("spec")
    asked = spec.container if spec else None
    name = context.variables.get("NEMO_RL_CONTAINER") or asked or ""
    limit = "a readable file"
    cure = "set cluster.container or NEMO_RL_CONTAINER to the image"
    if not name:
        return bad("no image named", limit, cure, blame=USER)
    if runtime == "apptainer" and not shutil.which("apptainer"):
        text = "apptainer is not on this machine; nodes may have it"
        return bad(text, limit, "load its module in the job", verdict=WARN)
    file = image_file(name, context.extra.get("root", Path()))
    if file is None:
        text = f"{name} is in a registry: every node would fetch it"
        better = "import it once into a file on shared storage"
        return bad(text, limit, better, verdict=WARN)
    try:
        with file.open("rb") as content:
            begin = content.read(1 << 12)
    except OSError as error:
        return bad(f"{name}: {error.strerror}", limit, cure, blame=USER)
    kinds = {".sqsh": b"hsqs", ".sif": b"SIF_MAGIC"}
    magic = kinds.get(file.suffix)
    if magic and magic not in begin:
        broken = "import or copy it again"
        return bad(f"{name} is no {file.suffix} file", limit, broken, blame=USER)
    return ok(f"{name}, {file.stat().st_size / 1e9:.1f} GB", limit)


def mounts(context: Context) -> Finding:
    """Whether the folders that are mounted exist."""
    if context.variables.get("NEMO_RL_CONTAINER_RUNTIME", "none") == "none":
        return skipped("no container")
    text = context.variables.get("NEMO_RL_CONTAINER_MOUNTS", "")
    parts = [part for part in text.split(",") if part]
    wrong = [p for p in parts if p.count(":") not in (1, 2) or not p.startswith("/")]
    if wrong:
        cure = "write /from:/to or /from:/to:ro, with commas between"
        return bad(", ".join(wrong), "/from:/to", cure, blame=USER)
    gone = [part.split(":")[0] for part in parts]
    gone = [place for place in gone if not Path(place).exists()]
    if gone:
        cure = "change NEMO_RL_CONTAINER_MOUNTS; they may exist on the nodes only"
        return bad(f"not here: {', '.join(gone)}", "they exist", cure, verdict=WARN)
    return ok(f"{len(parts)} and checkout, run and temporary folder", "they exist")


def site(context: Context) -> Finding:
    """Whether every variable of ours in the site file is one that is read."""
    place: Site = context.extra["site"]
    known = KNOWN | set(env.VARIABLES)
    for name in place.variables:
        if name.startswith("NEMO_RL_") and name not in known:
            cure = (
                f"correct launch/{place.name}.env.{did_you_mean(name, sorted(known))}"
            )
            return bad(f"{name} is read by nobody", "known names", cure, blame=USER)
    gpus = place.variables.get(GPUS_PER_NODE, "0")
    if not gpus.isdigit():
        cure = f"give a number in launch/{place.name}.env"
        return bad(f"{GPUS_PER_NODE}={gpus}", "a number", cure, blame=USER)
    return ok(f"{place.name}: {len(place.variables)} variables", "known names")


def secrets(context: Context) -> Finding:
    """Whether a secret would be written into a script, a log or a manifest."""
    place: Site = context.extra["site"]
    found = [
        f"launch/{place.name}.env: {name}"
        for name, value in place.variables.items()
        if variable_is_secret(name) and value and name not in env.inherited()
    ]
    config = context.extra.get("config")
    found += _keys(config.to_dict()) if config is not None else []
    if not found:
        return ok("none found", "no secret in files")
    cure = "take it out; export it in your shell, recipes name the variable"
    return bad(", ".join(found), "no secret in files", cure, blame=USER)


def _keys(value: Any, path: str = "") -> list[str]:
    """Keys of a configuration that hold a secret's value."""
    if isinstance(value, Mapping):
        return [
            found
            for key, inner in value.items()
            for found in _keys(inner, f"{path}.{key}" if path else str(key))
        ]
    return [path] if isinstance(value, str) and value and key_is_secret(path) else []


CHECKS = (
    Check("slurm", "without it nothing starts", slurm, 30),
    Check("partition", "a job beyond its limits waits for ever", partition, 20),
    Check("account", "a wrong account is refused", account),
    Check("accepted", "what SLURM itself says of the job", accepted, 30),
    Check("image", "a missing image fails on every node", image),
    Check("mounts", "a missing folder fails on every node", mounts),
    Check("site", "a misspelt variable has no effect", site),
    Check("secrets", "files are read by others, and kept", secrets),
)
