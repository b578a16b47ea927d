"""A program: model folder, tokenizer, rows and reward of a recipe, as a run reads them.

It raises what the run would raise, and so ends with the run's exit code and words.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_rl.api.functional import create_trainer, load_recipe
from nemo_rl.launch.driver import guarded
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
from nemo_rl.utils.imports import import_object

ROWS = 16
LIMIT_S = 38.0
ANSWER = "0"
"""What stands in for a model's answer: a reward has to survive any."""


def check(context: Context) -> Finding:
    """Run this program in a process of its own."""
    if context.recipe is None:
        return skipped("no recipe")
    command = [sys.executable, "-m", "nemo_rl.launch.preflight.rows"]
    command += [str(context.recipe), *context.overrides]
    # Not a GPU is touched: this may run beside anything.
    variables = dict(context.variables) | {"CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command,
            env=variables,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=LIMIT_S - 3,
            check=False,
        )
    except subprocess.TimeoutExpired:
        cure = "a large data set or a slow hub; the run has no such limit"
        return bad(
            f"no end in {LIMIT_S - 3:.0f} s", f"{LIMIT_S - 3:.0f} s", cure, verdict=WARN
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("rows: ")]
    if done.returncode == 0 and lines:
        return ok(lines[-1].removeprefix("rows: "), "no error")
    said = [line for line in done.stderr.splitlines() if line.strip()]
    ours = [line for line in said if line.startswith("nemo_rl: ")]
    text = (ours or said or [f"exit code {done.returncode}"])[-1]
    cure = "change the recipe: a run would end with this"
    return bad(text.removeprefix("nemo_rl: "), "no error", cure, blame=USER)


def look(recipe: Path, overrides: Sequence[str], count: int = ROWS) -> str:
    """Return what was read.

    Raises:
        NemoRLError: as the run would.
    """
    trainer = create_trainer(load_recipe(recipe, overrides))
    try:
        trainer.setup_inputs()
        rows = trainer.data.rows(range(min(count, len(trainer.data))))
        text = f"{len(trainer.data)} rows, {rows.size} of them through the template"
        if trainer.environment is None:
            return f"{text}; nothing scores"
        found = trainer.environment.step(*_answered(rows))
        scores = [float(score) for score in found.rewards]
    finally:
        trainer.teardown()
    return f"{text} and the reward ({min(scores):g} to {max(scores):g})"


def _answered(rows: Any) -> tuple[list[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Return conversations that end with a stand-in's answer, and their metadata."""
    answer = {"role": "assistant", "content": ANSWER}
    keys = ("prompt", "answer", "row", "task_name")
    numbers = range(rows.size)
    return (
        [[*rows["messages"][number], answer] for number in numbers],
        [{key: rows[key][number] for key in keys} for number in numbers],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: RECIPE [key=value ...]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(argv)

    def run() -> int:
        print(f"rows: {look(options.recipe, options.overrides)}", flush=True)
        return 0

    return guarded(run, debug=False)


def recipe(context: Context) -> Finding:
    """Whether the recipe is one, and the model's shape fits where it is at hand."""
    if context.recipe is None:
        return skipped("no recipe")
    config = load_recipe(context.recipe, context.overrides)
    find = import_object("nemo_rl.infra.assets:find_local_model")
    folder = find(config.policy.model_name)
    where = f"model at {folder}" if folder else f"{config.policy.model_name} not here"
    size = f"{config.cluster.num_nodes} nodes x {config.cluster.workers_per_node} ranks"
    return ok(f"{size}; {where}", "no error")


CHECKS = (
    Check(
        "recipe", "a wrong value costs the wait in the queue", recipe, 20, blame=USER
    ),
    Check("rows", "a run would end with the same error, later", check, LIMIT_S, WARN),
)

if __name__ == "__main__":
    sys.exit(main())
