"""The command line: check a recipe here, then submit it, show it or run it.

    python -m nemo_rl.launch recipes/grpo_llama8b.yaml --nodes 16
    python -m nemo_rl.launch grpo_smollm2_cpu grpo.max_num_steps=20 --site local
    nemo-rl convert --help    checkpoints to Hugging Face folders and back
    nemo-rl eval --help       a model's answers to a data set, scored
    nemo-rl doctor --help     whether machine, site and recipe are ready
    nemo-rl diagnose --help   whether sampling and training of a model agree
    nemo-rl status | logs | attach | cancel | report RUN      a run and its jobs

It needs no torch: a wrong size fails on the login node, not in the queue.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from nemo_rl.converters.cli import parser as convert_cli
from nemo_rl.evals import cli as evals_cli
from nemo_rl.launch import driver, site, submit
from nemo_rl.launch.job import JobSpec, find_recipe, make_job
from nemo_rl.launch.preflight import doctor
from nemo_rl.launch.runs import attach, cancel, logs, report, status
from nemo_rl.launch.script import render
from nemo_rl.models import diagnose
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError

COMMANDS = {
    "attach": attach.main,
    "cancel": cancel.main,
    "convert": convert_cli.main,
    "diagnose": diagnose.main,
    "doctor": doctor.main,
    "eval": evals_cli.main,
    "logs": logs.main,
    "report": report.main,
    "status": status.main,
}
"""First word of the command line -> what it is handed to."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_rl.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", help="path or name of a recipe")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the recipe; docs/configuration.md lists every key",
    )
    parser.add_argument("--nodes", type=int, help="cluster.num_nodes")
    parser.add_argument("--time", help="cluster.time, as in 04:00:00")
    parser.add_argument(
        "--site",
        help="where: launch/<site>.env; local is this machine, without SLURM",
    )
    parser.add_argument("--run-dir", type=Path, help="continue the run of this folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration and job script"
    )
    parser.add_argument(
        "--test-only", action="store_true", help="ask SLURM when it would start"
    )
    parser.add_argument("--write", action="store_true", help="write recipes/<name>.sh")
    parser.add_argument(
        "--wait", action="store_true", help="wait and exit as the job does"
    )
    parser.add_argument("--debug", action="store_true", help="full tracebacks")
    options = parser.parse_intermixed_args(argv)
    if options.recipe and "=" in options.recipe:
        # Only overrides were given, so the first took the place of the recipe.
        options.overrides.insert(0, options.recipe)
        options.recipe = None
    return options


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks; return the exit code.

    Raises:
        NemoRLError: the recipe is wrong or the job cannot be submitted.
    """
    root = site.root_dir()
    recipe = find_recipe(options.recipe, root)
    place = site.load_site(options.site or site.default_name(), root)
    overrides = list(options.overrides)
    if options.nodes is not None:
        overrides.append(f"cluster.num_nodes={options.nodes}")
    if options.time is not None:
        overrides.append(f'cluster.time="{options.time}"')
    spec, config = make_job(
        recipe, overrides, root=root, site=place, run_dir=options.run_dir
    )
    if options.write:
        return _write(spec, root)
    if options.dry_run:
        print(yaml.safe_dump(config.to_dict(), sort_keys=False))
        print(render(spec), end="")
        return 0
    if place.name == site.LOCAL:
        # One folder per recipe: a second run resumes what the first one began.
        folder = options.run_dir or root / "results" / spec.name / site.LOCAL
        print(f"run folder: {folder}", flush=True)
        debug = ["--debug"] if options.debug else []
        return driver.main([str(recipe), *overrides, "--run-dir", str(folder), *debug])
    if options.test_only:
        print(submit.ask_slurm(spec, root=root, site=place))
        return 0
    job = submit.submit(spec, root=root, site=place)
    folder = spec.run_dir or f"results/{spec.name}/{job.job_id}"
    print(f"submitted job {job.job_id}: {spec.nodes} nodes; log: {folder}/job.log")
    if options.wait:
        return submit.wait_for(job.job_id, root=root, site=place)
    return 0


def _write(spec: JobSpec, root: Path) -> int:
    if spec.overrides or spec.site != site.DEFAULT or spec.run_dir:
        raise LaunchError(
            "--write records a recipe as it stands in its file: leave out overrides, "
            "--nodes, --time, --site and --run-dir, or change the .yaml."
        )
    path = root / Path(spec.recipe).with_suffix(".sh")
    path.write_text(render(spec), encoding="utf-8")
    path.chmod(0o755)
    print(f"wrote {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; errors are one paragraph and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:], f"nemo-rl {argv[0]}")
    options = parse(argv)
    debug = options.debug or env.flag("NEMO_RL_DEBUG")
    return driver.guarded(lambda: run(options), debug=debug)


if __name__ == "__main__":
    sys.exit(main())
