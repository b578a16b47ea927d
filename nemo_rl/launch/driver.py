"""What runs on the head node: a recipe becomes a config, a trainer, a run.

It joins the Ray of RAY_ADDRESS, or starts one on this machine. Exit codes: 0 done,
2 the user's mistake, 75 stopped early and saved (run it again), 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.api.functional import algorithm_of, create_trainer, load_recipe
from nemo_rl.config.loading import load_recipe_mapping
from nemo_rl.launch.account import Account
from nemo_rl.launch.timeline import DriverMoments
from nemo_rl.launch.watchdog import watched
from nemo_rl.trainers.callbacks import Callback
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import NemoRLError
from nemo_rl.utils.secrets import masked

PREEMPTED = 75
PROGRESS = "PROGRESS"
RESOLVED = "resolved.yaml"
PLACES = {
    ("checkpointing", "checkpoint_dir"): "checkpoints",
    ("logger", "log_dir"): "logs",
}
"""Recipe keys of folders that belong to the run -> their name in its folder."""


class ProgressFile(Callback):
    """Names the newest checkpoint for `slurm/job.sh`, which knows no recipe."""

    def __init__(self, path: Path) -> None:
        """Remember where to write."""
        self.path = path

    def on_checkpoint(self, trainer: Any, path: Path) -> None:
        """Write the checkpoint's path as a whole."""
        partial = self.path.with_suffix(".tmp")
        partial.write_text(f"{path}\n", encoding="utf-8")
        partial.replace(self.path)


def run(
    recipe: Path,
    overrides: Sequence[str],
    run_dir: Path | None,
    moments: DriverMoments | None = None,
) -> int:
    """Train; return the exit code.

    Args:
        recipe: path of the YAML file.
        overrides: "section.key=value" texts.
        run_dir: folder of the run. Relative checkpoint_dir and log_dir become its
            checkpoints/ and logs/; absolute ones stay.
        moments: told what was reached.

    Raises:
        NemoRLError: whatever the recipe or the training raises.
    """
    moments = moments or DriverMoments(None)
    callbacks: list[Callback] = [moments]
    if run_dir is not None:
        run_dir = run_dir.resolve()
        overrides = [*overrides, *_placed(recipe, overrides, run_dir)]
        callbacks.append(ProgressFile(run_dir / PROGRESS))
    config = load_recipe(recipe, overrides)
    trainer = create_trainer(config)
    moments.reached("built")
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(masked(config.to_dict()), sort_keys=False)
        (run_dir / RESOLVED).write_text(text, encoding="utf-8")
        trainer.run_dir = run_dir
    with watched(run_dir, config.cluster.hang_timeout_s):
        result = trainer.fit(callbacks=callbacks)
    return PREEMPTED if result.status == "preempted" else 0


def _placed(recipe: Path, overrides: Sequence[str], run_dir: Path) -> list[str]:
    """Return the overrides that put the run's folders into its own folder."""
    mapping = load_recipe_mapping(recipe, overrides)
    moved = []
    if algorithm_of(mapping) == "eval":
        return []  # All it writes lies in the run's folder already.
    for (section, key), folder in PLACES.items():
        value = (mapping.get(section) or {}).get(key)
        if value is None or not Path(str(value)).is_absolute():
            moved.append(f"{section}.{key}={json.dumps(str(run_dir / folder))}")
    return moved


def guarded(run_it: Any, *, debug: bool) -> int:
    """Call a function; turn its errors into one paragraph and an exit code."""
    try:
        return run_it()
    except NemoRLError as error:
        if debug:
            traceback.print_exc()
        print(f"nemo_rl: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("nemo_rl: interrupted", file=sys.stderr, flush=True)
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: RECIPE [key=value ...] [--run-dir DIR] [--debug]."""
    parser = argparse.ArgumentParser(prog="nemo_rl.launch.driver", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument(
        "--moments", type=Path, help="file to write to when training began"
    )
    parser.add_argument(
        "--account", type=Path, help="where an error is written down, for the agent"
    )
    parser.add_argument("--debug", action="store_true", help="full tracebacks")
    options = parser.parse_intermixed_args(argv)
    debug = options.debug or env.flag("NEMO_RL_DEBUG")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    moments = DriverMoments(options.moments)
    moments.reached("imported")

    def told() -> int:
        with Account(options.account):
            return run(options.recipe, options.overrides, options.run_dir, moments)

    return guarded(told, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
