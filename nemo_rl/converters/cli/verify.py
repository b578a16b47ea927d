"""The command ``verify``: a folder against its manifest, or two folders."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_rl.converters.cli.parser import Command, config_option
from nemo_rl.converters.cli.report import memory, progress
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError

if TYPE_CHECKING:
    from nemo_rl.converters.bridge import Weight

_DESCRIPTION = """Prove that nothing changed.

    verify A      every file and every tensor of A against the manifest that the
                  conversion wrote, read from the disk
    verify A B    every element of A and B, which may be of different kinds: a Hugging
                  Face folder and the Megatron checkpoint that was made of it"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="A")
    parser.add_argument("target", type=Path, metavar="B", nargs="?")
    config_option(parser)
    parser.add_argument(
        "--logits",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare what both stacks compute, where they can run (default: on)",
    )


def _verify(options: argparse.Namespace) -> None:
    if options.target is None:
        _against_manifest(options.source, options.config)
    else:
        _against_other(options)


def _against_manifest(folder: Path, config: Path | None) -> None:
    from nemo_rl.converters import bridge, conversion, manifest

    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder")
    content = manifest.read_manifest(folder)
    files, tensors = content["files"], dict(content["tensors"])
    size = sum(entry["bytes"] for entry in files.values())
    size += sum(entry["bytes"] for entry in tensors.values())
    wrong = []
    with progress(size) as advance:
        manifest.check_files(folder, content, advance)
        side, spec = conversion.open_side(folder, config)
        for weight in bridge.weights_of(spec):
            for name, part in zip(weight.rule.hf, side.parts(weight), strict=True):
                entry = tensors.pop(name, {})
                found = {
                    "dtype": str(part.dtype).removeprefix("torch."),
                    "shape": list(part.shape),
                    "bytes": part.nbytes,
                    "digest": manifest.digest(part),
                }
                if found != entry:
                    wrong.append(name)
                advance(part.nbytes)
            side.release(weight)
    if wrong or tensors:
        raise CheckpointError(
            f"{folder}: tensors are not what {manifest.MANIFEST} describes: "
            f"{bridge.some([*wrong, *tensors])}"
        )
    count = len(content["tensors"])
    print(f"{folder} is what its manifest says: {len(files)} files, {count} tensors")


def _against_other(options: argparse.Namespace) -> None:
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
    megatron = [side for side in (one, two) if isinstance(side, bridge.MegatronSide)]
    if options.logits and len(megatron) == 1:
        hf = two if megatron[0] is one else one
        _compare_stacks(megatron[0].folder, options, hf.folder, weights)


def _compare_stacks(
    checkpoint: Path, options: argparse.Namespace, folder: Path, weights: list[Weight]
) -> None:
    from nemo_rl.converters import conversion
    from nemo_rl.converters.cli import stacks

    reason = stacks.why_not(sum(math.prod(weight.shape) for weight in weights))
    if reason is not None:
        print(f"logits were not compared: {reason}")
        return
    config = conversion.config_of(checkpoint, options.config)
    print(stacks.compare_stacks(checkpoint, config, folder))


VERIFY = Command(
    "a folder against its manifest, or two folders of either kind",
    _arguments,
    _verify,
    _DESCRIPTION,
)
