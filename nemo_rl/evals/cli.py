"""Measure a model on a data set: pass@k, majority vote, intervals, every answer.

    {prog} smollm2-135m-instruct arithmetic --samples 8 --max-new-tokens 8
    {prog} RUN/checkpoints/step_000100 tests.jsonl --greedy --reward rewards.py:score
    {prog} my-model my-data --split test --tp 2 data.prompt_key=question

MODEL is a Hugging Face folder, a hub name, a packaged model, a checkpoint of a training
run, or the run's folder (its newest checkpoint). DATASET is a registered name, a file,
a folder or a hub name. key=value changes any key of the sections policy, data, env,
cluster and eval.

It writes answers.jsonl, summary.json and report.md into the folder of --output.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_rl.config.keywords import count_gpus
from nemo_rl.config.loading import apply_overrides
from nemo_rl.utils.exceptions import ConfigurationError, NemoRLError
from nemo_rl.utils.imports import import_object

_FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--samples": ("num_samples", {"type": int, "help": "answers per prompt"}),
    "--k": ("k", {"type": int, "nargs": "+", "help": "k of pass@k and cons@k"}),
    "--temperature": ("temperature", {"type": float, "help": "of sampling"}),
    "--max-new-tokens": ("max_new_tokens", {"type": int, "help": "of an answer"}),
    "--turns": ("max_turns", {"type": int, "help": "with the environment, at most"}),
    "--limit": ("max_prompts", {"type": int, "help": "only the first rows"}),
    "--threshold": ("threshold", {"type": float, "help": "reward of a right answer"}),
    "--answer-pattern": ("answer_pattern", {"help": "what votes, as an expression"}),
    "--seed": ("seed", {"type": int, "help": "of sampling and bootstrap"}),
    "--tp": ("tensor_parallel_size", {"type": int, "help": "tensor parallel size"}),
    "--pp": ("pipeline_parallel_size", {"type": int, "help": "pipeline parallel size"}),
    "--gpus": ("gpus_per_node", {"type": int, "help": "GPUs; all unless given"}),
}
"""Flag -> keyword of ``evaluate``, and how it is read."""


def parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").replace("{prog}", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("dataset", metavar="DATASET", nargs="?")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--greedy", action="store_true", help="the likeliest tokens")
    parser.add_argument("--split", help="split of the data set")
    parser.add_argument("--reward", help="module:function or file.py:function")
    parser.add_argument("--env", help="environment that scores, by its name")
    parser.add_argument(
        "--workers", type=int, help="CPU worker processes; tp x pp unless given"
    )
    parser.add_argument("--output", type=Path, help="folder of the result")
    parser.add_argument("--debug", action="store_true", help="full tracebacks")
    for flag, (name, options) in _FLAGS.items():
        parser.add_argument(flag, dest=name, **options)
    found = parser.parse_intermixed_args(argv)
    if found.dataset and "=" in found.dataset:
        # Only overrides were given, so the first took the place of the data set.
        found.overrides.insert(0, found.dataset)
        found.dataset = None
    return found


def keywords_of(options: argparse.Namespace) -> dict[str, Any]:
    """The keywords of ``evaluate`` that a command line asks for.

    Raises:
        ConfigurationError: an override is none.
    """
    keywords = apply_overrides({}, options.overrides)
    flags = [name for name, _ in _FLAGS.values()]
    keywords |= {
        name: getattr(options, name)
        for name in flags
        if getattr(options, name) is not None
    }
    if options.greedy:
        keywords["greedy"] = True
    if options.split is not None:
        keywords["dataset_kwargs"] = {"split": options.split}
    if options.env is not None:
        keywords["env"] = {**keywords.get("env", {}), "name": options.env}
    chosen = "cluster" in keywords or options.gpus_per_node is not None
    if options.workers is not None or not (chosen or count_gpus()):
        keywords["cpu_workers_per_node"] = options.workers or (
            (options.tensor_parallel_size or 1) * (options.pipeline_parallel_size or 1)
        )
    return keywords


def run(options: argparse.Namespace) -> int:
    """Evaluate, show the table and say where everything is.

    Raises:
        NemoRLError: whatever the evaluation raises.
    """
    import rich

    keywords = keywords_of(options)
    data = options.dataset or (keywords.get("data") or {}).get("dataset_name")
    if data is None:
        raise ConfigurationError(
            "no data set: name one after the model, for example arithmetic."
        )
    output = options.output or Path("results", "evals", _folder(options.model, data))
    evaluate = import_object("nemo_rl.evals.evaluation:evaluate")
    table = import_object("nemo_rl.evals.report:table")
    with _bar() as progress:
        result = evaluate(
            options.model,
            options.dataset,
            options.reward,
            output=output,
            progress=progress,
            recipe_dir=Path.cwd(),
            **keywords,
        )
    rich.print(table(result))
    facts = result.facts
    print(f"{facts['num_prompts']} prompts x {facts['num_samples']} answers")
    for name in ("report.md", "summary.json", "answers.jsonl"):
        print(result.output / name)
    return 0


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line per batch elsewhere; both on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("prompts", total=None)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if not console.is_terminal:
                print(f"answered {done} of {total} prompts", file=sys.stderr)

        yield told


def _folder(model: str, dataset: str) -> str:
    """A folder's name for a model and a data set."""
    path = Path(model)
    # Steps of different runs have the same name.
    parts = path.parts[-3:] if path.name.startswith("step_") else path.parts[-1:]
    return re.sub(r"[^\w.-]+", "-", f"{'-'.join(parts)}_{Path(dataset).name}")


def main(argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Run the command line; a user's mistake is one paragraph and exit code 2."""
    options = parse(argv, prog or "python -m nemo_rl.evals")
    try:
        return run(options)
    except NemoRLError as error:
        if options.debug:
            raise
        print(f"nemo_rl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nemo_rl: interrupted", file=sys.stderr)
        return 130
