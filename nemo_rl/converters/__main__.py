"""Convert, inspect and compare checkpoints, on any machine and without a GPU.

    python -m nemo_rl.converters hf-to-megatron MODEL OUT
    python -m nemo_rl.converters megatron-to-hf RUN/checkpoints/step_000100 OUT \\
        --config MODEL
    python -m nemo_rl.converters inspect FOLDER
    python -m nemo_rl.converters verify A B

Weights are read and written one at a time. A result is read back from disk and compared
with its source before it gets its name, so what is there is complete and right.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError, NemoRLError

DTYPES = ("float32", "bfloat16", "float16")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_rl.converters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("hf-to-megatron", "a Hugging Face folder to a Megatron checkpoint"),
        (
            "megatron-to-hf",
            "a checkpoint of training or of Megatron to Hugging Face",
        ),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path, help="a folder that does not exist")
        command.add_argument("--dtype", choices=DTYPES, help="default: the source's")
        command.add_argument(
            "--no-verify", action="store_true", help="do not read the result back"
        )
        command.add_argument(
            "--dry-run", action="store_true", help="say what would be written"
        )
        if name == "megatron-to-hf":
            _add_config(command)
            command.add_argument(
                "--shard-gib", type=float, default=4.0, help="size of a shard (4)"
            )
    inspect = commands.add_parser("inspect", help="a table of the tensors of a folder")
    inspect.add_argument("source", type=Path)
    verify = commands.add_parser("verify", help="compare two folders of either kind")
    verify.add_argument("source", type=Path, metavar="a")
    verify.add_argument("target", type=Path, metavar="b")
    _add_config(verify)
    return parser.parse_args(argv)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config",
        type=Path,
        help="Hugging Face folder that a training checkpoint came from",
    )


def run(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        NemoRLError: see ``convert.convert`` and ``convert.compare``.
    """
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "inspect": _inspect,
        "verify": _verify,
        "hf-to-megatron": _convert,
        "megatron-to-hf": _convert,
    }
    commands[options.command](options)


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
    with _progress(size * (2 if verify else 1)) as advance:
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
    print(f"wrote {options.target}; {compared}; {_memory()}")


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
    with _progress(convert.total_bytes(weights, dtypes)) as advance:
        plan = list(zip(weights, dtypes, strict=True))
        convert.compare(one, two, plan, progress=advance)
    print(f"equal: every element of {options.source} and {options.target}; {_memory()}")


def _inspect(options: argparse.Namespace) -> None:
    from nemo_rl.converters import bridge
    from nemo_rl.utils.files import human_size

    rows: list[tuple[str, tuple[int, ...], str, int, int]] = []
    if bridge.is_megatron(options.source):
        from nemo_rl.converters.dist_checkpoint import DistCheckpoint

        checkpoint = DistCheckpoint(bridge.find_weights(options.source))
        for key, t in checkpoint.tensors.items():
            rows.append((key, t.shape, str(t.dtype), t.chunks, t.nbytes))
    else:
        from nemo_rl.converters.hf import HfWeights

        with HfWeights(options.source) as weights:
            for name, shape in weights.shapes.items():
                dtype = weights.dtype(name)
                size = math.prod(shape) * dtype.itemsize
                rows.append((name, shape, str(dtype), 1, size))
    width = max([len(row[0]) for row in rows], default=6)
    print(f"{'tensor':{width}}  {'shape':>20}  {'dtype':>8}  chunks  {'size':>10}")
    for key, shape, kind, chunks, size in sorted(rows):
        kind = kind.removeprefix("torch.")
        shown = " x ".join(map(str, shape)) or "scalar"
        print(
            f"{key:{width}}  {shown:>20}  {kind:>8}  {chunks:6}  {human_size(size):>10}"
        )
    print(f"{len(rows)} tensors, {human_size(sum(row[-1] for row in rows))}")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal, one line at the end elsewhere."""
    from rich import progress

    started = time.monotonic()
    columns: list[Any] = [
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    ]
    done = 0
    with progress.Progress(*columns, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=total)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.advance(task, count)

        yield advance
    seconds = max(time.monotonic() - started, 1e-9)
    print(f"{done / 1e6:,.0f} MB in {seconds:.1f} s, {done / 1e6 / seconds:,.0f} MB/s")


def _memory() -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"peak memory {peak / 1024:,.0f} MiB, files that are mapped included"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a user's mistake is one paragraph and exit code 2."""
    try:
        run(parse(argv))
    except NemoRLError as error:
        print(f"nemo_rl: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("nemo_rl: stopped; nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
