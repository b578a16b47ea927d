"""The command ``inspect``: a table of the tensors of a folder of either kind."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from nemo_rl.converters.cli import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER", help="of either kind")


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


INSPECT = Command("a table of the tensors of a folder", _arguments, _inspect)
