"""Several datasets as one, in shares that weights decide; knows no field of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nemo_rl.data.datasets.views import describe_row
from nemo_rl.utils.exceptions import DataError
from nemo_rl.utils.seeding import derive_seed

MAX_ROWS = 200_000_000
"""Longest epoch; its order takes 10 bytes of memory per row."""


class Source(NamedTuple):
    """One of the datasets of a mixture."""

    name: str
    """What messages call it."""
    rows: Any
    """Its rows."""
    weight: float | None = None
    """Its share is weight over the sum of weights; None everywhere: its rows."""


class MixtureDataset:
    """Rows of several datasets in one fixed order.

    With weights w, source i of n_i rows has the share p_i = w_i / sum(w) of an epoch.
    An epoch has N = max(n_i / p_i) rows: it ends when the source that is largest for
    its share has been seen once. The others are repeated: source i gives round(N p_i)
    samples, each of its rows as often as any other or once more, the latter drawn
    anew by the seed. Without weights every row occurs once.

    Row ``idx`` is the same row in every process and every run with this seed, so a
    position in the data is a position in the mixture. Sources alternate at random even
    where the order is not shuffled again.

    Args:
        sources: The datasets, with weights all or none of them.
        seed: Decides the order, and which rows are repeated once more.

    Raises:
        DataError: There are no sources, one is empty, a weight is not above 0, or the
            shares make an epoch too long.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int = 0) -> None:
        """Lay out the epoch."""
        self.sources = list(sources)
        self.counts = _counts(self.sources)
        """Samples of each source in an epoch."""
        generator = np.random.default_rng(derive_seed(seed, "mixture"))
        order = generator.permutation(sum(self.counts))
        owners = np.repeat(np.arange(len(self.counts), dtype=np.int16), self.counts)
        picked = [
            _picked(len(source.rows), count, generator)
            for source, count in zip(self.sources, self.counts, strict=True)
        ]
        self._owner, self._row = owners[order], np.concatenate(picked)[order]
        named = {getattr(s.rows, "default_environment", None) for s in self.sources}
        self.default_environment = named.pop() if len(named) == 1 else None

    def __len__(self) -> int:
        """Return the number of rows of an epoch."""
        return len(self._row)

    def __getitem__(self, idx: int) -> Any:
        """Return a row."""
        return self._source(idx).rows[int(self._row[idx])]

    def describe_row(self, idx: int) -> str:
        """Say from which source a row is, and where it stands there."""
        source = self._source(idx)
        return f"{source.name}: {describe_row(source.rows, int(self._row[idx]))}"

    def describe(self) -> list[dict[str, Any]]:
        """Return of every source its name, rows, samples per epoch and their share."""
        return [
            {
                "name": source.name,
                "rows": len(source.rows),
                "samples": count,
                "share": count / len(self),
            }
            for source, count in zip(self.sources, self.counts, strict=True)
        ]

    def _source(self, idx: int) -> Source:
        return self.sources[self._owner[idx]]


def _counts(sources: list[Source]) -> list[int]:
    """Return how many samples of each source an epoch has."""
    if not sources:
        raise DataError("A mixture needs at least one dataset.")
    for source in sources:
        if len(source.rows) == 0:
            raise DataError(f"{source.name} holds no rows.")
    rows = [len(source.rows) for source in sources]
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return rows
    if len(weights) != len(sources):
        raise DataError("Give every dataset of a mixture a weight, or none.")
    wrong = [s for s in sources if s.weight is None or not s.weight > 0]
    if wrong:
        raise DataError(
            f"{wrong[0].name} has the weight {wrong[0].weight}: not above 0."
        )
    shares = [weight / sum(weights) for weight in weights]
    lengths = [count / share for count, share in zip(rows, shares, strict=True)]
    if max(lengths) > MAX_ROWS:
        longest = lengths.index(max(lengths))
        raise DataError(
            f"{sources[longest].name} has {rows[longest]} rows and the share "
            f"{shares[longest]:.2g}, so an epoch would have {max(lengths):.3g} rows, "
            f"more than {MAX_ROWS}. Raise its weight."
        )
    return [round(max(lengths) * share) for share in shares]


def _picked(rows: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return ``count`` of a source's rows, each as often as any other or once more."""
    whole = np.tile(np.arange(rows), count // rows)
    return np.concatenate([whole, generator.permutation(rows)[: count % rows]])
