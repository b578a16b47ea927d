"""The commands ``hf-to-megatron``, ``megatron-to-hf`` and ``verify``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from nemo_rl.converters.cli import DTYPES, Command
from nemo_rl.converters.report import memory, progress
from nemo_rl.utils.exceptions import ConfigurationError


def _conversion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="a folder that does not exist")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the source's")
    parser.add_argument(
        "--no-verify", action="store_true", help="do not read the result back"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be written"
    )


def _to_hf(parser: argparse.ArgumentParser) -> None:
    _conversion(parser)
    _config(parser)
    parser.add_argument(
        "--shard-gib", type=float, default=4.0, help="size of a shard (4)"
    )


def _comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="A")
    parser.add_argument("target", type=Path, metavar="B")
    _config(parser)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        help="Hugging Face folder that a training checkpoint came from",
    )


def _convert(options: argparse.Namespace) -> None:
    import torch

    from nemo_rl.converters import bridge, convert
    from nemo_rl.utils.files import human_size

    to_hf = options.command == "megatron-to-hf"
    if options.source.is_dir() and bridge.is_megatron(options.source) != to_hf:
        other = "hf-to-megatron" if to_hf else "megatron-to-hf"
        raise ConfigurationError(
            f"{options.source} is the wrong kind of folder for {options.command}; "
            f"use {other}"
        )
    config = options.config if to_hf else None
    side, spec = convert.open_side(options.source, config)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    weights = bridge.weights_of(spec)
    dtypes = convert.dtypes_of(side, weights, dtype)
    size = convert.total_bytes(weights, dtypes)
    largest = max(
        math.prod(w.shape) * d.itemsize for w, d in zip(weights, dtypes, strict=True)
    )
    names = sorted({str(d).removeprefix("torch.") for d in dtypes})
    print(
        f"{spec.architecture}, {spec.num_layers} layers, {len(weights)} weights, "
        f"{' and '.join(names)}: {human_size(size)} on disk, the largest weight "
        f"{human_size(largest)}"
    )
    if options.dry_run:
        return
    verify = not options.no_verify
    with progress(size * (2 if verify else 1)) as advance:
        convert.convert(
            options.source,
            options.target,
            config=config,
            dtype=dtype,
            shard_bytes=int(getattr(options, "shard_gib", 4.0) * 2**30),
            verify=verify,
            progress=advance,
        )
    compared = "every element compared with the source" if verify else "not verified"
    print(f"wrote {options.target}; {compared}; {memory()}")


def _verify(options: argparse.Namespace) -> None:
    from nemo_rl.converters import bridge, convert

    one, spec = convert.open_side(options.source, options.config)
    two, other = convert.open_side(options.target, options.config)
    if spec != other:
        names = [n for n in vars(spec) if getattr(spec, n) != getattr(other, n)]
        raise ConfigurationError(
            f"{options.source} and {options.target} are models of different shapes: "
            f"{', '.join(names)}"
        )
    weights = bridge.weights_of(spec)
    dtypes = convert.dtypes_of(one, weights, None)
    with progress(convert.total_bytes(weights, dtypes)) as advance:
        plan = list(zip(weights, dtypes, strict=True))
        convert.compare(one, two, plan, progress=advance)
    print(f"equal: every element of {options.source} and {options.target}; {memory()}")


HF_TO_MEGATRON = Command(
    "a Hugging Face folder to a Megatron checkpoint", _conversion, _convert
)
MEGATRON_TO_HF = Command(
    "a checkpoint of training or of Megatron to Hugging Face", _to_hf, _convert
)
VERIFY = Command("compare two folders of either kind", _comparison, _verify)
