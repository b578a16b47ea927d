"""The commands ``hf-to-megatron`` and ``megatron-to-hf``."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rl.converters.cli.parser import DTYPES, Command, config_option
from nemo_rl.converters.cli.report import memory, progress, resident
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.files import human_size

if TYPE_CHECKING:
    from nemo_rl.converters.conversion import Conversion

_SLACK = 300 << 20
_LATER = """
The result grows in the hidden folder .OUT.partial beside OUT. It is forced to the disk,
read back, compared with the source by digests, and only then named OUT. When a
conversion is stopped, killed, or out of disk space, run the same command with --resume:
it goes on where it was.
"""
_TO_MEGATRON = f"""Convert a Hugging Face folder to a Megatron checkpoint (torch_dist).

    hf-to-megatron Qwen3-8B qwen3-megatron
    hf-to-megatron Qwen3-8B qwen3-megatron --dtype bfloat16 --resume
    hf-to-megatron Qwen3-8B qwen3-megatron --dry-run
{_LATER}
config.json and the tokenizer are kept in OUT/hf, so the way back needs nothing else."""
_TO_HF = f"""Convert a checkpoint of training or of Megatron to a Hugging Face folder.

    megatron-to-hf qwen3-megatron out
    megatron-to-hf RUN/checkpoints/step_000100 out
    megatron-to-hf megatron-lm-checkpoint out --config Qwen3-8B
{_LATER}
Checkpoints of training and of hf-to-megatron carry config.json and tokenizer. For one
that does not, name the Hugging Face folder that the training began with (--config)."""


def _conversion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument(
        "target", type=Path, metavar="OUT", help="a folder that does not exist"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the result (default: the source's)"
    )
    parser.add_argument(
        "--shard-gib",
        type=float,
        default=4.0,
        metavar="GIB",
        help="size of a file of the result (default: 4)",
    )
    parser.add_argument(
        "--threads", type=int, help="workers (default: one per core, at most 4)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="workers that are processes, for many cores (default: 1, threads only)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue a conversion that was interrupted; begin where there is none",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read the result back and compare it (default: on)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the source, and say what would be written with how much memory",
    )


def _to_hf(parser: argparse.ArgumentParser) -> None:
    _conversion(parser)
    config_option(parser)


def _convert(options: argparse.Namespace) -> None:
    import torch

    from nemo_rl.converters import bridge, convert
    from nemo_rl.converters.conversion import Conversion, Request

    to_hf = options.command == "megatron-to-hf"
    if options.source.is_dir() and bridge.is_megatron(options.source) != to_hf:
        other = "hf-to-megatron" if to_hf else "megatron-to-hf"
        raise ConfigurationError(
            f"{options.source} is the wrong kind of folder for {options.command}; "
            f"use {other}"
        )
    for name in ("threads", "processes", "shard_gib"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            option = f"--{name.replace('_', '-')}"
            raise ConfigurationError(f"{option} is {value}, expected more than 0")
    interpreter = resident()
    request = Request(
        options.source,
        options.config if to_hf else None,
        getattr(torch, options.dtype) if options.dtype else None,
        int(options.shard_gib * 2**30),
    )
    conversion = Conversion(request)
    bound = interpreter + 2 * conversion.largest + _SLACK
    _announce(conversion, options, bound)
    if options.dry_run:
        return
    with progress(conversion.bytes * (2 if options.verify else 1)) as advance:
        convert.convert(
            request.source,
            options.target,
            config=request.config,
            dtype=request.dtype,
            shard_bytes=request.shard_bytes,
            verify=options.verify,
            resume=options.resume,
            threads=options.threads,
            processes=options.processes,
            progress=advance,
        )
    checked = "read back and equal to the source" if options.verify else "not verified"
    print(f"wrote {options.target}; {checked}; {memory(bound)}")


def _announce(conversion: Conversion, options: argparse.Namespace, bound: int) -> None:
    names = sorted({str(dtype).removeprefix("torch.") for _, dtype in conversion.plan})
    files = conversion.target.files
    spec = conversion.spec
    print(
        f"{spec.architecture}, {spec.num_layers} layers, {len(conversion.plan)} "
        f"weights, {' and '.join(names)}: {human_size(sum(files.values()))} on disk, "
        f"the largest weight {human_size(conversion.largest)}"
    )
    if not options.dry_run:
        return
    place = options.target.absolute().parent
    while not place.exists():
        place = place.parent
    print(f"{options.target} would hold:")
    for name, size in files.items():
        print(f"  {name}  {human_size(size)}")
    print("  and the index, config.json, tokenizer, manifest")
    print(f"disk: {human_size(shutil.disk_usage(place).free)} free in {place}")
    print(f"memory: at most {human_size(bound)}")
    if options.target.exists():
        print(f"{options.target} exists already: choose another name")


HF_TO_MEGATRON = Command(
    "a Hugging Face folder to a Megatron checkpoint",
    _conversion,
    _convert,
    _TO_MEGATRON,
)
MEGATRON_TO_HF = Command(
    "a checkpoint of training or of Megatron to Hugging Face",
    _to_hf,
    _convert,
    _TO_HF,
)
