"""Sweeps and sizes on the command line: "key=a,b,c" and "16+2" as overrides.

Text in, text out; whether a value is right is the configuration's business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from nemo_rl.utils.exceptions import LaunchError

_NODES = re.compile(r"(\d+)(?:\+(\d+))?")
OF_THE_JOB = "cluster."
"""Keys that sbatch reads once for all tasks of an array."""


def parse_nodes(text: str | int) -> list[str]:
    """Return the overrides of "N" or "N+k": N nodes are needed, k are spare.

    Example:
        >>> parse_nodes("16+2")
        ['cluster.num_nodes=16', 'cluster.spare_nodes=2']

    Raises:
        LaunchError: it is neither.
    """
    match = _NODES.fullmatch(str(text).strip())
    if match is None or int(match[1]) < 1:
        raise LaunchError(
            f"--nodes {text}: expected a number of nodes, or needed and spare ones as "
            "in 16+2."
        )
    overrides = [f"cluster.num_nodes={int(match[1])}"]
    if match[2] is not None:
        overrides.append(f"cluster.spare_nodes={int(match[2])}")
    return overrides


def combinations(sweep: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return one group of overrides per combination, the last key changing fastest.

    Example:
        >>> combinations(["grpo.seed=1,2", "policy.learning_rate=1e-6"])
        (('grpo.seed=1', 'policy.learning_rate=1e-6'), ('grpo.seed=2', ...

    Raises:
        LaunchError: a text is not key=a,b,c, or a key is there twice.
    """
    axes: list[list[str]] = []
    keys: list[str] = []
    for text in sweep:
        key, equals, values = text.partition("=")
        choices = split_values(values)
        if not (key and equals and all(choices)):
            raise LaunchError(f"--sweep {text}: expected key=a,b,c.")
        if key in keys:
            raise LaunchError(
                f"--sweep names {key} twice: give all its values at once."
            )
        keys.append(key)
        axes.append([f"{key}={choice}" for choice in choices])
    return tuple(product(*axes)) if axes else ()


def split_values(text: str) -> list[str]:
    """Cut at the commas that stand outside brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def fits_an_array(groups: Sequence[Sequence[str]]) -> bool:
    """Whether all combinations ask the same of SLURM, so that one array will do."""
    return not any(text.startswith(OF_THE_JOB) for group in groups for text in group)


def table(groups: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """Return the combinations as a table: its job or folder, then a value per key."""
    keys = [text.partition("=")[0] for text in groups[0]]
    rows = [["run", *keys]]
    for name, group in zip(names, groups, strict=True):
        rows.append([name, *(text.partition("=")[2] for text in group)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )
