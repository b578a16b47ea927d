"""What the ranks of an engine hold, put together: one digest per Hugging Face tensor.

Each rank reports parts: where a slice lies in the full tensor, and its digest. Parts of
different ranks at the same place are copies and must agree; the others add up. Knows no
engine: ``backends/generation/vllm/held.py`` is what reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nemo_rl.backends.refit.digest import MODULUS


@dataclass(frozen=True, kw_only=True)
class RankWeights:
    """What one rank holds of the tensors that were sent.

    Attributes:
        parts: name to ``(offset, shape, digest)`` of each slice the rank has.
        uncovered: name to the reason why it cannot be read.
        stale: layers that compute with something else than the weight they show.
        non_finite: name to the number of elements that are NaN or infinite.
        unsent: the engine's parameters that no tensor, or not enough, went into.
        rounded: name to the dtype it is held in, where it was sent in a wider one.
    """

    parts: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], int]]]
    uncovered: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=dict)
    unsent: list[str] = field(default_factory=list)
    rounded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineWeights:
    """What one engine holds, all its ranks together.

    Attributes:
        digests: name to the digest of the full tensor.
        uncovered: name to the reason why it could not be read.
        torn: name to what is wrong: ranks disagree on a part they share, or have gaps.
        stale: layers that compute with something else than the weight they show.
        non_finite: name to the number of elements that are NaN or infinite.
        unsent: the engine's own names of parameters that were not sent.
        rounded: name to the dtype it is held in, where it was sent in a wider one.
    """

    digests: dict[str, int]
    uncovered: dict[str, str] = field(default_factory=dict)
    torn: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=dict)
    unsent: list[str] = field(default_factory=list)
    rounded: dict[str, str] = field(default_factory=dict)


def merge_ranks(
    ranks: Sequence[RankWeights], shapes: Mapping[str, Sequence[int]]
) -> EngineWeights:
    """Put together what the ranks of one engine hold.

    Args:
        ranks: in the order of their numbers.
        shapes: of all tensors that were sent, by Hugging Face name.
    """
    digests: dict[str, int] = {}
    uncovered: dict[str, str] = {}
    torn: dict[str, str] = {}
    for name, shape in shapes.items():
        seen: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        for number, rank in enumerate(ranks):
            if name in rank.uncovered:
                uncovered[name] = rank.uncovered[name]
            for offset, size, digest in rank.parts.get(name, ()):
                if seen.setdefault((offset, size), digest) != digest:
                    torn[name] = (
                        f"rank {number} holds other bits than an earlier rank at "
                        f"{list(offset)}, size {list(size)}"
                    )
        if name in uncovered:
            continue
        held, wanted = sum(math.prod(size) for _, size in seen), math.prod(shape)
        if held != wanted:
            torn.setdefault(name, f"the ranks hold {held} of its {wanted} elements")
        digests[name] = sum(seen.values()) % MODULUS
    broken: dict[str, int] = {}
    for rank in ranks:
        for name, count in rank.non_finite.items():
            broken[name] = max(count, broken.get(name, 0))
    return EngineWeights(
        digests=digests,
        uncovered=uncovered,
        torn=torn,
        stale=list(dict.fromkeys(layer for rank in ranks for layer in rank.stale)),
        non_finite=broken,
        unsent=list(dict.fromkeys(name for rank in ranks for name in rank.unsent)),
        rounded={n: dtype for rank in ranks for n, dtype in rank.rounded.items()},
    )
