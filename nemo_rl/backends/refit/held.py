"""What the ranks of an engine hold, put together: one digest per Hugging Face tensor.

Each rank reports parts: where a slice lies in the full tensor, and its digest. Parts of
different ranks at the same place are copies and must agree; the others add up. Knows no
engine: ``backends/generation/vllm/held.py`` is what reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_rl.backends.refit.digest import MODULUS


@dataclass(frozen=True, kw_only=True)
class RankWeights:
    """What one rank holds; ``to_plain`` and ``from_plain`` move it between processes.

    Attributes:
        parts: name to ``(offset, shape, digest)`` of each slice the rank has.
        uncovered: name to the reason why it cannot be read.
        stale: layers that compute with something else than the weight they show.
        non_finite: name to the number of elements that are NaN or infinite.
        unsent: vLLM's parameters that no tensor, or not enough of them, went into.
    """

    parts: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], int]]]
    uncovered: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=dict)
    unsent: list[str] = field(default_factory=list)

    def to_plain(self) -> dict[str, Any]:
        """Lists, strings and numbers alone, for msgpack or JSON."""
        parts = {
            name: [[list(offset), list(shape), digest] for offset, shape, digest in own]
            for name, own in self.parts.items()
        }
        return {
            "parts": parts,
            "uncovered": self.uncovered,
            "stale": self.stale,
            "non_finite": self.non_finite,
            "unsent": self.unsent,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RankWeights:
        """The inverse of ``to_plain``."""
        parts = {
            name: [(tuple(offset), tuple(shape), digest) for offset, shape, digest in p]
            for name, p in plain["parts"].items()
        }
        return cls(
            parts=parts,
            uncovered=dict(plain["uncovered"]),
            stale=list(plain["stale"]),
            non_finite=dict(plain["non_finite"]),
            unsent=list(plain["unsent"]),
        )


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
    """

    digests: dict[str, int]
    uncovered: dict[str, str] = field(default_factory=dict)
    torn: dict[str, str] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    non_finite: dict[str, int] = field(default_factory=dict)
    unsent: list[str] = field(default_factory=list)


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
    )
