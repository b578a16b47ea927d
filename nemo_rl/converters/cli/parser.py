"""Convert, inspect and compare checkpoints, on any machine and without a GPU.

    {prog} hf-to-megatron MODEL OUT
    {prog} megatron-to-hf RUN/checkpoints/step_000100 OUT
    {prog} hf-to-dcp MODEL OUT
    {prog} dcp-to-hf CHECKPOINT OUT --config MODEL
    {prog} lora-merge MODEL ADAPTER OUT
    {prog} reshard CHECKPOINT OUT --tp 8
    {prog} inspect FOLDER
    {prog} verify OUT
    {prog} verify A B

Weights go from file to file, a few at a time. A result is read back from disk and
compared with its source before it gets its name, so what is there is complete and
right. What was interrupted goes on with --resume.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import NemoRLError

COMMANDS = {
    "hf-to-megatron": "nemo_rl.converters.cli.conversions:HF_TO_MEGATRON",
    "megatron-to-hf": "nemo_rl.converters.cli.conversions:MEGATRON_TO_HF",
    "hf-to-dcp": "nemo_rl.converters.cli.formats:HF_TO_DCP",
    "dcp-to-hf": "nemo_rl.converters.cli.formats:DCP_TO_HF",
    "lora-merge": "nemo_rl.converters.cli.formats:LORA_MERGE",
    "reshard": "nemo_rl.converters.cli.formats:RESHARD",
    "inspect": "nemo_rl.converters.cli.inspect:INSPECT",
    "verify": "nemo_rl.converters.cli.verify:VERIFY",
}
"""Name of a command -> the ``Command`` and its module, which must not import torch."""
DTYPES = ("float32", "bfloat16", "float16")


def config_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, which describes a checkpoint that does not say what it is."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="Hugging Face folder of the model, where the checkpoint carries none",
    )


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        help: one line for the list of commands.
        arguments: adds its arguments to a parser.
        run: does it; imports torch itself, so that ``--help`` need not.
        description: what its own ``--help`` teaches.
    """

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    description: str = ""


def parse(
    argv: Sequence[str] | None, prog: str = "python -m nemo_rl.converters"
) -> argparse.Namespace:
    """Read the command line; ``run`` of the result is the command's function."""
    style: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").replace("{prog}", prog),
        epilog=f"{prog} COMMAND --help says what a command does.",
        formatter_class=style,
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    for name, place in COMMANDS.items():
        module, _, attribute = place.partition(":")
        command: Command = getattr(import_module(module), attribute)
        sub = commands.add_parser(
            name,
            help=command.help,
            description=command.description or command.help,
            formatter_class=style,
        )
        command.arguments(sub)
        sub.set_defaults(run=command.run)
    return parser.parse_args(argv)


def main(
    argv: Sequence[str] | None = None, prog: str = "python -m nemo_rl.converters"
) -> int:
    """Run the command line; a user's mistake is one paragraph and exit code 2."""
    options = parse(argv, prog)
    try:
        options.run(options)
    except NemoRLError as error:
        print(f"nemo_rl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        how = str(stop) or "nothing was left behind"
        print(f"nemo_rl: stopped; {how}", file=sys.stderr)
        return 130
    return 0
