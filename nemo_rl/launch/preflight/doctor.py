"""nemo-rl doctor: is this machine, this site, this recipe ready? In under a minute.

    nemo-rl doctor                          the site and what SLURM says
    nemo-rl doctor grpo_llama8b --site dgx_h100 --nodes 16
    nemo-rl doctor grpo_smollm2_cpu --site local   this machine will train
    nemo-rl doctor --json --only slurm,site

Exit code 0: nothing failed; 1: a machine fails; 2: the recipe or the site is wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_rl.launch import site as sites
from nemo_rl.launch.allocation import VARIABLES, host_memory_mb
from nemo_rl.launch.driver import guarded
from nemo_rl.launch.job import find_recipe, make_job
from nemo_rl.launch.preflight import (
    collective,
    gpus,
    login,
    network,
    report,
    rows,
    storage,
    system,
)
from nemo_rl.launch.preflight.checks import (
    USER,
    Check,
    Context,
    Finding,
    bad,
    chosen,
    run_checks,
)
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError, NemoRLError

FOLDERS = ("writable", "checkpoints")
ANYWHERE = (*rows.CHECKS, *(c for c in storage.CHECKS if c.name in FOLDERS))
RECIPE = "recipe"


def _allreduce(context: Context) -> Finding:
    """Reduce among the ranks of this machine."""
    kind = "nccl" if context.gpus else "gloo"
    ranks = context.gpus or min(2, context.extra.get("workers", 1))
    with tempfile.TemporaryDirectory(prefix="nemo_rl-doctor-") as name:
        folder = Path(name)
        words = collective.command(
            folder, ranks=ranks, gpus=context.gpus > 0, alone=True
        )
        said = _run(words, context, collective.NODE_S)
        found = collective.read(folder / "local.json")
        if found is None:
            cure = "is torch installed here?"
            return bad(f"{kind}: {said}", "the right sum", cure)
    return collective.judge_node(found, kind)


def _run(words: Sequence[str], context: Context, limit_s: float) -> str:
    """Run a program to its end or the limit; return the end of what it says."""
    # A session of its own: the ranks it forks end with it.
    process = subprocess.Popen(
        words,
        env=dict(context.variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"no end in {limit_s:.0f} s"
    lines = said.strip().splitlines()
    return lines[-1] if lines else f"exit code {process.returncode}"


NODE = (
    *(*gpus.CHECKS, *system.CHECKS),
    *(check for check in storage.CHECKS if check.name not in FOLDERS),
    *network.CHECKS,
    Check(
        collective.NODE_NAME,
        "broken links give wrong sums or hang",
        _allreduce,
        collective.NODE_S + 5,
    ),
)
CHECKS = (*login.CHECKS, *ANYWHERE, *NODE)


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(RECIPE, nargs="?", help="path or name of a recipe")
    made.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe"
    )
    made.add_argument("--site", help="launch/<site>.env; local: this machine trains")
    made.add_argument("--nodes", type=int, help="cluster.num_nodes")
    made.add_argument("--run-dir", type=Path, help="where the run will write")
    made.add_argument("--only", default="", metavar="A,B", help="these checks alone")
    made.add_argument("--skip", default="", metavar="A,B", help="all but these checks")
    made.add_argument("--json", action="store_true", help="for programs")
    return made


def run(options: argparse.Namespace) -> int:
    """Check; print; return the exit code.

    Raises:
        LaunchError: no such recipe, site or check.
    """
    root = sites.root_dir()
    place = sites.load_site(options.site or sites.default_name(), root)
    variables = env.inherited() | dict(place.variables)
    here = place.name == sites.LOCAL or VARIABLES["job_id"] in variables
    checks = [*([] if place.name == sites.LOCAL else login.CHECKS), *ANYWHERE]
    if place.name == sites.LOCAL:
        checks += [c for c in login.CHECKS if c.name in ("site", "secrets")]
    checks += NODE if here else ()
    only, skip = (
        [name for name in text.split(",") if name]
        for text in (options.only, options.skip)
    )
    chosen(CHECKS, only, skip)  # Any known name may be given anywhere.
    names = [check.name for check in checks]
    if only:
        missing = [name for name in only if name not in names]
        if missing:
            raise LaunchError(
                f"{', '.join(missing)} can only be checked on the machine that trains: "
                "use --site local there, or run doctor inside a job."
            )
    wanted = chosen(checks, only, [name for name in skip if name in names])
    context = _context(options, root, place)
    context, mistake = _with_recipe(context, options, place)
    if mistake is not None:
        wanted = [check for check in wanted if check.name not in (RECIPE, "rows")]
    findings = [*([mistake] if mistake else []), *run_checks(wanted, context)]
    if options.json:
        print(report.as_json(findings, CHECKS))
    else:
        left = [] if here else [check.name for check in NODE]
        print(report.table(findings))
        print(report.summary(findings, left))
    return report.exit_code(findings)


def _context(options: argparse.Namespace, root: Path, place: sites.Site) -> Context:
    variables = env.inherited() | dict(place.variables)
    number = variables.get(VARIABLES["job_id"], "0")
    return Context(
        variables=variables,
        run_dir=(options.run_dir or root / "results").resolve(),
        temp_root=Path(variables.get("NEMO_RL_TMPDIR") or "/tmp"),
        job_id=int(number) if number.isdigit() else 0,
        memory_mb=host_memory_mb(),
        extra={"site": place, "root": root},
    )


def _with_recipe(
    context: Context, options: argparse.Namespace, place: sites.Site
) -> tuple[Context, Finding | None]:
    """Read the recipe; a mistake in it is a finding, and the rest goes on."""
    if options.recipe is None:
        return context, None
    root = context.extra["root"]
    path = find_recipe(options.recipe, root)
    overrides = list(options.overrides)
    if options.nodes is not None:
        overrides.append(f"cluster.num_nodes={options.nodes}")
    try:
        spec, config = make_job(path, overrides, root=root, site=place)
    except NemoRLError as error:
        cure = "change the recipe or the override; docs/configuration.md has every key"
        found = bad(str(error), "a recipe that fits", cure, blame=USER)
        return context, replace(found, name=RECIPE)
    extra = {
        **context.extra,
        "spec": spec,
        "config": config,
        "workers": config.cluster.workers_per_node,
        "checkpoint_dir": str(config.checkpointing.checkpoint_dir),
    }
    return replace(
        context,
        recipe=path,
        overrides=tuple(overrides),
        gpus=config.cluster.gpus_per_node,
        extra=extra,
    ), None


def main(argv: Sequence[str], prog: str) -> int:
    """Entry point; errors are one paragraph and exit code 2."""
    options = parser(prog).parse_intermixed_args(argv)
    if options.recipe and "=" in options.recipe:
        options.overrides.insert(0, options.recipe)
        options.recipe = None
    return guarded(lambda: run(options), debug=env.flag("NEMO_RL_DEBUG"))
