"""Check a recipe on this machine, then submit it to SLURM, show it or run it here.

    nemo-rl launch recipes/grpo_llama8b.yaml --nodes 16 --follow
    nemo-rl launch grpo_llama8b --sweep policy.optimizer.kwargs.lr=1e-7,3e-7
    nemo-rl launch grpo_smollm2_cpu grpo.max_num_steps=20 --local
    nemo-rl launch grpo_llama8b --rehearse      all of it here, small, in two minutes
    nemo-rl launch import-image docker://REGISTRY#NAME:TAG --output nemo_rl.sqsh
    nemo-rl convert --help    checkpoints to Hugging Face folders and back
    nemo-rl eval --help       a model's answers to a data set, scored
    nemo-rl doctor --help     whether machine, site and recipe are ready
    nemo-rl diagnose --help   whether sampling and training of a model agree
    nemo-rl status | logs | attach | save | stop | cancel | report RUN   a run's jobs

`nemo-rl launch`, `nemo-rl` and `python -m nemo_rl.launch` are the same. It needs no
torch: a wrong size fails on the login node, not in the queue.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_rl.converters.cli import parser as convert_cli
from nemo_rl.evals import cli as evals_cli
from nemo_rl.launch import driver, images, site, submission
from nemo_rl.launch.preflight import doctor
from nemo_rl.launch.rehearsal.front import rehearse
from nemo_rl.launch.request import Prepared, prepare
from nemo_rl.launch.runs import ask, attach, cancel, logs, report, status
from nemo_rl.launch.script import render
from nemo_rl.launch.show import say_submitted, see_to_the_end, show
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
    "import-image": images.main,
    "logs": logs.main,
    "report": report.main,
    "save": ask.save_main,
    "status": status.main,
    "stop": ask.stop_main,
}
"""First word of the command line -> what it is handed to."""

INSTEAD = {
    "--dry-run": "print configuration, job script and cost; submit nothing",
    "--rehearse": "play it here: real tokenizer, data and reward, a small random model",
    "--test-only": "ask SLURM when it would start",
    "--write": "write recipes/<name>.sh",
    "--wait": "wait for the end; the exit code is the run's",
    "--follow": "print the log to the end; the exit code is the run's",
}
"""Options that exclude one another: what happens in place of, or after, submitting."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="nemo-rl launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", nargs="?", help="a file, or the name of one in recipes/")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the recipe; docs/configuration.md lists every key",
    )
    add("--nodes", help="how many; N+k asks for k spare ones")
    add("--time", help="time limit of each job, as in 04:00:00")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--site", help="which cluster: launch/SITE.env (generic)")
    place.add_argument(
        "--local",
        action="store_const",
        const=site.LOCAL,
        dest="site",
        help="run on this machine, without SLURM: --site local",
    )
    add("--run-dir", type=Path, help="go on with the run of this folder")
    add(
        "--chain",
        type=int,
        default=0,
        metavar="N",
        help="N further jobs go on in the same run folder, one after the other",
    )
    add(
        *("--sweep", "--array"),
        action="append",
        default=[],
        metavar="key=a,b,c",
        help="a run for each value; several of them: for each combination",
    )
    only = parser.add_mutually_exclusive_group()
    for name, text in INSTEAD.items():
        only.add_argument(name, action="store_true", help=text)
    add(
        "--stand-in",
        metavar="MODEL",
        help="with --rehearse: for a recipe's model that is not on this machine",
    )
    add(
        "--json",
        action="store_true",
        help="--dry-run, --rehearse, or what was submitted, as JSON",
    )
    add("--debug", action="store_true", help="full tracebacks")
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
    prepared = prepare(
        options.recipe,
        overrides=options.overrides,
        nodes=options.nodes,
        time=options.time,
        site=options.site,
        chain=options.chain,
        sweep=options.sweep,
        run_dir=options.run_dir,
    )
    _check_options(options, prepared)
    if options.write:
        return _write(prepared)
    if options.dry_run:
        return show(prepared, as_json=options.json)
    if options.rehearse:
        return rehearse(prepared, stand_in=options.stand_in, as_json=options.json)
    if prepared.site.name == site.LOCAL:
        return _run_here(prepared, options)
    if options.test_only:
        prepared.check_container()
        for spec in (prepared.first, *prepared.specs[1:]):
            answer = submission.ask_slurm(spec, root=prepared.root, site=prepared.site)
            print(f"{answer}\nSLURM would accept it; nothing was submitted.")
        return 0
    jobs = submission.submit_prepared(prepared)
    if not (options.json and options.wait):
        say_submitted(jobs, prepared, as_json=options.json)
    if options.follow or options.wait:
        return see_to_the_end(jobs, follow_log=options.follow, as_json=options.json)
    return 0


def _check_options(options: argparse.Namespace, prepared: Prepared) -> None:
    if options.json and (options.follow or options.test_only or options.write):
        raise LaunchError(
            "--json goes with --dry-run, --rehearse, --wait or a submission."
        )
    if options.stand_in and not options.rehearse:
        raise LaunchError(
            f"--stand-in {options.stand_in} is for --rehearse; to train another model, "
            f"set policy.model_name={options.stand_in}."
        )
    if options.follow and prepared.groups:
        raise LaunchError(
            "--follow prints one log, and --sweep starts several runs: use --wait."
        )
    if prepared.site.name == site.LOCAL:
        for name in ("test_only", "wait", "follow"):
            if getattr(options, name):
                raise LaunchError(
                    f"--{name.replace('_', '-')} asks SLURM, and site local has none: "
                    "it runs here and returns when it is done. Leave it out."
                )


def _run_here(prepared: Prepared, options: argparse.Namespace) -> int:
    spec = prepared.first
    # One folder per recipe: a second run resumes what the first one began.
    folder = options.run_dir or prepared.root / "results" / spec.name / site.LOCAL
    print(f"run folder: {folder}", flush=True)
    debug = ["--debug"] if options.debug else []
    arguments = [str(prepared.recipe), *prepared.overrides, "--run-dir", str(folder)]
    return driver.main([*arguments, *debug])


def _write(prepared: Prepared) -> int:
    spec = prepared.first
    changed = (spec.overrides, spec.run_dir, prepared.groups, prepared.chain)
    if any(changed) or spec.site != site.DEFAULT:
        raise LaunchError(
            "--write records a recipe as it stands in its file: leave out overrides, "
            "--nodes, --time, --site, --run-dir, --chain and --sweep, or change the "
            ".yaml."
        )
    path = prepared.root / Path(spec.recipe).with_suffix(".sh")
    path.write_text(render(spec), encoding="utf-8")
    path.chmod(0o755)
    print(f"wrote {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; errors are one paragraph and exit code 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["launch"]:
        argv = argv[1:]
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:], f"nemo-rl {argv[0]}")
    options = parse(argv)
    debug = options.debug or env.flag("NEMO_RL_DEBUG")
    return driver.guarded(lambda: run(options), debug=debug)


if __name__ == "__main__":
    sys.exit(main())
