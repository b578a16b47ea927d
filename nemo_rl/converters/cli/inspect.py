"""The command ``inspect``: a table of the tensors of a folder of any kind."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_rl.converters.cli.parser import Command
from nemo_rl.utils.files import human_size

_DESCRIPTION = """List the tensors of a folder, whatever wrote it.

    inspect Qwen3-8B                            Hugging Face folder
    inspect RUN/checkpoints/step_000100         training or Megatron checkpoint
    inspect CHECKPOINT                          torch.distributed.checkpoint folder
    inspect ADAPTER                             PEFT adapter

No weight is read. The column layout shows how a distributed checkpoint divides a
tensor: 36 x 2 x 1 is 36 layers, of each of which two ranks wrote half of the rows."""


class Row(NamedTuple):
    """What is known of a tensor.

    Attributes:
        name: in the folder.
        shape: of the whole tensor.
        dtype: as torch or the file spells it.
        layout: pieces along each dimension; empty where it is stored as one.
        nbytes: of all elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: tuple[int, ...]
    nbytes: int


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of a table in the order of the layers, and totals.

    Args:
        rows: in any order.
    """
    from nemo_rl.converters.output import natural

    ordered = sorted(rows, key=lambda row: natural(row.name))
    cells = [("tensor", "shape", "dtype", "layout", "bytes")]
    for row in ordered:
        shape, layout = _times(row.shape, "scalar"), _times(row.layout, "-")
        cells.append((row.name, shape, row.dtype, layout, f"{row.nbytes:,}"))
    widths = [max(len(line[n]) for line in cells) for n in range(5)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in cells
    ]
    groups: dict[str, list[Row]] = {}
    for row in ordered:
        groups.setdefault(_group(row), []).append(row)
    if len(groups) > 1:
        lines += [_total(found, f" of {name}") for name, found in groups.items()]
    return [*lines, _total(ordered, "")]


def _times(numbers: Sequence[int], nothing: str) -> str:
    return " x ".join(map(str, numbers)) or nothing


def _group(row: Row) -> str:
    kind = "the optimizer" if row.name.startswith("optim") else "the model"
    return f"{kind} in {row.dtype}"


def _total(rows: Sequence[Row], what: str) -> str:
    size = sum(row.nbytes for row in rows)
    return f"{len(rows)} tensors{what}, {human_size(size)}"


def rows_of(folder: Path) -> list[Row]:
    """The tensors of a folder of any kind; no weight is read.

    Raises:
        NemoRLError: it is none that is known, or is damaged.
    """
    from nemo_rl.converters import bridge
    from nemo_rl.converters.formats import adapter
    from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
    from nemo_rl.converters.formats.hf import HfWeights

    if bridge.is_megatron(folder):
        checkpoint = DistCheckpoint(bridge.find_weights(folder))
        return [
            Row(key, t.shape, _plain(t.dtype), checkpoint.grid(key), t.nbytes)
            for key, t in checkpoint.tensors.items()
        ]
    kind = adapter.AdapterWeights if adapter.is_adapter(folder) else HfWeights
    with kind(folder) as weights:
        return [
            Row(name, shape, weights.declared(name)[0], (), weights.declared(name)[1])
            for name, shape in weights.shapes.items()
        ]


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER", help="of any kind")


def _inspect(options: argparse.Namespace) -> None:
    print("\n".join(table(rows_of(options.source))))


INSPECT = Command(
    "a table of the tensors of a folder", _arguments, _inspect, _DESCRIPTION
)
