"""Check that sampling and training of a model agree; exit code 1 where they do not.

    {prog} smollm2-135m-instruct
    {prog} RUN/checkpoints/step_000100 --tp 2 policy.precision=float32

It compares the log-probabilities of generation and training, those of decoding token by
token and reading at once, and looks whether the length limit is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from nemo_rl.config.keywords import count_gpus
from nemo_rl.config.loading import apply_overrides
from nemo_rl.utils.exceptions import NemoRLError
from nemo_rl.utils.imports import import_object

FAILED = 1


def parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").replace("{prog}", prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--tp", type=int, default=1, help="tensor parallel size")
    parser.add_argument("--pp", type=int, default=1, help="pipeline parallel size")
    parser.add_argument(
        "--workers", type=int, help="CPU worker processes; tp x pp unless given"
    )
    return parser.parse_intermixed_args(argv)


def run(options: argparse.Namespace) -> int:
    """Check, show the verdicts; return the exit code.

    Raises:
        NemoRLError: no such model, or a layout that does not fit it.
    """
    import rich
    from rich.table import Table

    keywords: dict[str, Any] = apply_overrides({}, options.overrides)
    keywords["tensor_parallel_size"] = options.tp
    keywords["pipeline_parallel_size"] = options.pp
    if options.workers or not ("cluster" in keywords or count_gpus()):
        keywords["cpu_workers_per_node"] = options.workers or options.tp * options.pp
    diagnose = import_object("nemo_rl.models.validation:diagnose")
    findings = diagnose(options.model, **keywords)
    table = Table(title=f"{options.model}, TP{options.tp} PP{options.pp}")
    for column in ("check", "verdict", "numbers"):
        table.add_column(column)
    for found in findings:
        verdict = "[green]ok[/]" if found.ok else "[bold red]FAILED[/]"
        table.add_row(found.check, verdict, found.detail)
    rich.print(table)
    return 0 if all(found.ok for found in findings) else FAILED


def main(argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Run the command line; a user's mistake is one paragraph and exit code 2."""
    options = parse(argv, prog or "python -m nemo_rl.models.diagnose")
    try:
        return run(options)
    except NemoRLError as error:
        print(f"nemo_rl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nemo_rl: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
