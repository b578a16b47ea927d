"""ParallelDims: the axes of a job, their sizes, and which rank stands where.

Arithmetic only: it is checked on a login node and used on ranks. The order is
Megatron's: tp varies fastest over the global rank, then cp, dp, and pp slowest.
Expert parallelism regroups ranks within cp x dp and adds no ranks of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nemo_rl.utils.exceptions import ConfigurationError

TP, CP, DP, PP = "tp", "cp", "dp", "pp"
"""Axis names: tensor, context, data and pipeline parallel."""


class Coordinates(NamedTuple):
    """A rank's index on each axis."""

    tp: int
    cp: int
    dp: int
    pp: int


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive integer in ascending order."""
    return [d for d in range(1, number + 1) if number % d == 0]


def nearest(wanted: int, valid: list[int]) -> str:
    """Return the valid values next to `wanted`, as "2" or "2 or 4"."""
    below = [v for v in valid if v <= wanted][-1:]
    above = [v for v in valid if v >= wanted][:1]
    return " or ".join(str(v) for v in dict.fromkeys(below + above))


@dataclass(frozen=True)
class ParallelDims:
    """Sizes of every axis; `dp` is what remains of the world size.

    Raises:
        ConfigurationError: a size below 1, or a world size that tp*pp*cp does not
            divide, with the nearest world sizes that it does.

    Example:
        >>> dims = ParallelDims(world_size=8, tp=2, pp=2)
        >>> dims.dp, dims.coordinates(5)
        (2, Coordinates(tp=1, cp=0, dp=0, pp=1))
    """

    world_size: int
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        """Check that the sizes fit together."""
        for axis in ("world_size", TP, PP, CP, "ep"):
            if getattr(self, axis) < 1:
                raise ConfigurationError(f"{axis}={getattr(self, axis)} must be >= 1.")
        if self.world_size % self.model_size:
            multiple = self.world_size // self.model_size * self.model_size
            valid = [m for m in (multiple, multiple + self.model_size) if m > 0]
            raise ConfigurationError(
                f"tensor {self.tp} x pipeline {self.pp} x context {self.cp} parallel "
                f"= {self.model_size} processes hold one copy of the model, which "
                f"does not divide the world size {self.world_size}. Nearest valid "
                f"world size: {' or '.join(map(str, valid))}."
            )
        if self.dp * self.cp * self.tp % self.ep:
            raise ConfigurationError(
                f"expert parallel size {self.ep} does not divide the "
                f"{self.dp * self.cp * self.tp} ranks of a pipeline stage. Nearest "
                f"valid: {nearest(self.ep, divisors(self.dp * self.cp * self.tp))}."
            )

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model: tp * pp * cp."""
        return self.tp * self.pp * self.cp

    @property
    def dp(self) -> int:
        """Copies of the model."""
        return self.world_size // self.model_size

    def coordinates(self, rank: int) -> Coordinates:
        """Return where a global rank stands.

        Raises:
            IndexError: there is no such rank.
        """
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} of a world of {self.world_size}")
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Coordinates(tp=tp, cp=cp, dp=dp, pp=pp)

    def rank_of(self, *, tp: int = 0, cp: int = 0, dp: int = 0, pp: int = 0) -> int:
        """Return the global rank that stands at these indices.

        Raises:
            IndexError: an index is outside its axis.
        """
        wanted = Coordinates(tp, cp, dp, pp)
        for axis, index in wanted._asdict().items():
            if not 0 <= index < getattr(self, axis):
                raise IndexError(f"{axis} {index} of {getattr(self, axis)}")
        return tp + self.tp * (cp + self.cp * (dp + self.dp * pp))

    def dp_leaders(self) -> list[int]:
        """Return, by dp index, the rank that has the outputs of that copy.

        It is the one with tp=0 and cp=0 on the last pipeline stage, where the
        logits are.
        """
        return [self.rank_of(dp=dp, pp=self.pp - 1) for dp in range(self.dp)]
