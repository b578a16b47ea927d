"""A shell on a node of a running job, in its container where it has one.

{prog} 4711                      on the head node; `ray status` works there
{prog} 4711 --node gpu017
{prog} 4711 --node gpu017 -- nvidia-smi     a command instead of a shell
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_rl.launch.bulletin import HEAD, TOKEN
from nemo_rl.launch.hostlist import expand
from nemo_rl.launch.ray_start import client_environment
from nemo_rl.launch.record import read
from nemo_rl.launch.runs import cli
from nemo_rl.launch.runs.attempt import Attempt
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.launch.runs.state import RunState, look
from nemo_rl.launch.slurm_text import Job
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError

_CONTAINER = """
say() { printf '%s\\n' "$*" >&2; }
source "$NEMO_RL_ROOT/slurm/container.sh" || exit 2
[ "${#CONTAINER_SRUN[@]}" -eq 0 ] || printf '%s\\0' "${CONTAINER_SRUN[@]}"
printf '%s\\0' --
[ "${#CONTAINER_COMMAND[@]}" -eq 0 ] || printf '%s\\0' "${CONTAINER_COMMAND[@]}"
"""


def main(argv: Sequence[str] | None = None, program: str = "nemo-rl attach") -> int:
    """Command line: RUN [--node N] [--dry-run] [-- COMMAND ...]."""
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    parser = cli.make_parser(program, __doc__)
    parser.add_argument("--node", help="one of the job's nodes; the head unless given")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command, do not run it"
    )
    options = cli.parsed(parser, words)

    def run() -> int:
        scheduler = cli.scheduler_of()
        _ = scheduler.version  # --overlap is as old as the oldest SLURM it accepts.
        state = look([cli.run_of(options)], scheduler)[0]
        words = attach_command(state, options.node, command, root=cli.root_of(options))
        pyxis = any(word.startswith("--container-image=") for word in words)
        if pyxis and not scheduler.can_name_containers:
            raise LaunchError(
                "the run is in a pyxis container, but srun here has no option "
                "--container-image: attach from a login node of its cluster."
            )
        if options.dry_run:
            print(shlex.join(words))
            return 0
        sys.stdout.flush()
        os.execvp(words[0], words)

    return cli.guarded(run, options)


def attach_command(
    state: RunState, node: str | None, command: Sequence[str], *, root: Path
) -> list[str]:
    """Return the srun command that opens the shell.

    Args:
        state: the run.
        node: name of the node; None: the head.
        command: what to run; a login shell where it is empty.
        root: the checkout, for a run that did not write down its own.

    Raises:
        LaunchError: the run has no job that runs, or the node is not one of it.
    """
    job = state.job
    if job is None or job.has_ended or job.is_waiting or not job.nodes:
        raise LaunchError(
            f"{state.run.label} is {state.state}: a shell needs a job that runs. "
            f"nemo-rl logs {state.run.label} shows what it wrote."
        )
    names = expand(job.nodes)
    node = node or names[0]
    if node not in names:
        raise LaunchError(
            f"node {node} does not belong to job {job.job_id}. Its nodes: {job.nodes}."
        )
    attempt = _attempt_of(state.run, job)
    options, before = container_words(state.run, attempt, root)
    words = ["srun", f"--jobid={job.job_id}", "--overlap", f"--nodelist={node}"]
    words += ["--nodes=1", "--ntasks=1", "--mem=0", "--cpu-bind=none"]
    if not command:
        words.append("--pty")
    variables = _ray_variables(attempt)
    settings = [f"{name}={value}" for name, value in variables.items()]
    inside = ["env", *settings] if settings else []
    return [*words, *options, *before, *inside, *(command or ["bash", "-l"])]


def container_words(
    run: RunFolder, attempt: Attempt | None, root: Path
) -> tuple[list[str], list[str]]:
    """Return the options for srun and the words before the program.

    slurm/container.sh is asked, with what the job's environment was.

    Raises:
        LaunchError: it refuses, in its words.
    """
    known = attempt.facts if attempt is not None else {}
    facts: Mapping[str, str] = known.get("environment") or {}
    gpus = known.get("num_gpus") or 0
    recorded = {name: value for name, value in facts.items() if value}
    root = Path(recorded.get("NEMO_RL_ROOT") or root)
    clean = {n: v for n, v in env.inherited().items() if not n.startswith("NEMO_RL_")}
    variables = (
        clean
        | recorded
        | {
            "NEMO_RL_ROOT": str(root),
            "RUN_DIR": str(run.path),
            "SLURM_GPUS_ON_NODE": str(gpus),
        }
    )
    done = subprocess.run(
        ["bash", "-c", _CONTAINER],
        env=variables,
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise LaunchError(f"{root}/slurm/container.sh: {done.stderr.strip()}")
    words = done.stdout.split("\0")[:-1]
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _attempt_of(run: RunFolder, job: Job) -> Attempt | None:
    own = [attempt for attempt in run.attempts if attempt.job_id == job.job_id]
    return own[-1] if own else None


def _ray_variables(attempt: Attempt | None) -> dict[str, str]:
    """What `ray status` needs; the token stays in its file."""
    if attempt is None:
        return {}
    address = read(attempt.folder, HEAD).get("address")
    if not address:
        return {}
    token = client_environment(attempt.folder / TOKEN)
    return {"RAY_ADDRESS": address} | token
