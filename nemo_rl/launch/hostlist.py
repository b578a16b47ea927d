"""SLURM's compressed node lists: "gpu[001-004,9],login1" to names and back.

Knows nothing about SLURM's commands: a login node may expand lists of thousands
of names without asking slurmctld for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product

from nemo_rl.utils.exceptions import LaunchError

_GROUP = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])*")


def expand(text: str) -> list[str]:
    """Return the node names of a compressed list, in its order.

    Example:
        >>> expand("gpu[08-10],login1")
        ['gpu08', 'gpu09', 'gpu10', 'login1']

    Raises:
        LaunchError: the text is not a node list.
    """
    names: list[str] = []
    for group in _split(text):
        parts = re.split(r"\[([^\[\]]*)\]", group)
        choices = [
            [part] if index % 2 == 0 else _numbers(part, text)
            for index, part in enumerate(parts)
        ]
        names.extend("".join(pieces) for pieces in product(*choices))
    return names


def compress(names: Iterable[str]) -> str:
    """Return the names as one compressed list, keeping the order of first sight.

    Example:
        >>> compress(["gpu08", "gpu09", "gpu10", "login"])
        'gpu[08-10],login'
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for name in names:
        prefix = name.rstrip("0123456789")
        digits = name[len(prefix) :]
        numbers = groups.setdefault((prefix, len(digits)), [])
        if digits:
            numbers.append(int(digits))
    return ",".join(
        _group(prefix, width, numbers) for (prefix, width), numbers in groups.items()
    )


def _group(prefix: str, width: int, numbers: list[int]) -> str:
    if not numbers:
        return prefix
    ordered = sorted(set(numbers))
    spans: list[list[int]] = []
    for number in ordered:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [
        f"{low:0{width}d}" if low == high else f"{low:0{width}d}-{high:0{width}d}"
        for low, high in spans
    ]
    if len(ordered) == 1:
        return prefix + texts[0]
    return f"{prefix}[{','.join(texts)}]"


def _split(text: str) -> list[str]:
    """Cut at the commas that stand outside brackets; in one pass over the text."""
    text = text.strip()
    groups, position = [], 0
    while True:
        match = _GROUP.match(text, position)
        assert match is not None  # It matches an empty group, too.
        group, position = match[0], match.end()
        if position < len(text) and text[position] != ",":
            raise LaunchError(f"{text!r} is not a list of nodes: unbalanced brackets.")
        if not group:
            raise LaunchError(f"{text!r} is not a list of nodes: an empty name.")
        groups.append(group)
        if position == len(text):
            return groups
        position += 1


def _numbers(inside: str, text: str) -> list[str]:
    numbers: list[str] = []
    for span in inside.split(","):
        if span.isascii() and span.isdigit():  # Thousands of them, sometimes.
            numbers.append(span)
            continue
        match = re.fullmatch(r"(\d+)-(\d+)", span)
        if match is None:
            raise LaunchError(f"{text!r} is not a list of nodes: {span!r} is no range.")
        low, high = match[1], match[2]
        if int(low) > int(high):
            raise LaunchError(f"{text!r} is not a list of nodes: {span!r} runs down.")
        numbers.extend(f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1))
    return numbers
