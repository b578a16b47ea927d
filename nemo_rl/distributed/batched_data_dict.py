"""BatchedDataDict: a batch as named columns: slice, shard, repeat, join.

Knows nothing about what the columns mean; ``data/interfaces.py`` says that.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from nemo_rl.utils.exceptions import DataError

DatumT = TypeVar("DatumT")
Column = torch.Tensor | list


class BatchedDataDict(UserDict, Generic[DatumT]):
    """Columns of equal length: tensors with the batch first, or lists.

    ``BatchedDataDict[PromptBatch]`` names the datum it holds; the parameter has no
    effect at run time.

    Example:
        >>> batch = BatchedDataDict({"x": torch.arange(4), "name": list("abcd")})
        >>> batch.size, batch.slice(1, 3)["name"]
        (4, ['b', 'c'])

    Raises:
        DataError: A column is neither tensor nor list, or its length differs.
    """

    def __setitem__(  # pyrefly: ignore[bad-override-param-name]
        self, key: str, value: Any
    ) -> None:
        """Set a column after checking its length against the others."""
        column = _as_column(key, value)
        others = {k: len(v) for k, v in self.data.items() if k != key}
        if any(length != len(column) for length in others.values()):
            raise _lengths_error({**others, key: len(column)})
        self.data[key] = column

    def __ior__(  # pyrefly: ignore[bad-override]
        self, other: Mapping[str, Any]
    ) -> BatchedDataDict:
        """Add or replace columns in place."""
        columns = {key: _as_column(key, value) for key, value in other.items()}
        merged = {**self.data, **columns}
        _check_lengths(merged)
        self.data = merged
        return self

    @property
    def size(self) -> int:
        """Number of rows; 0 where there are no columns."""
        for column in self.data.values():
            return len(column)
        return 0

    def slice(self, start: int, end: int) -> BatchedDataDict:
        """Return rows start .. end - 1; tensors are views.

        Raises:
            DataError: The bounds do not lie in the batch.
        """
        if not 0 <= start <= end <= self.size:
            raise DataError(
                f"Rows {start}:{end} do not lie in a batch of {self.size} rows."
            )
        return self._map(lambda column: column[start:end])

    def shard_by_batch_size(
        self, shards: int, *, allow_uneven_shards: bool = False
    ) -> list[BatchedDataDict]:
        """Cut the batch into contiguous parts, one per data-parallel rank.

        Args:
            shards: Number of parts.
            allow_uneven_shards: Let the first parts be one row longer than the last
                (validation); otherwise the size must be divisible.

        Raises:
            DataError: The rows do not divide evenly.
        """
        if shards < 1:
            raise DataError(f"A batch cannot be cut into {shards} shards.")
        base, extra = divmod(self.size, shards)
        if extra and not allow_uneven_shards:
            raise DataError(
                f"A batch of {self.size} rows does not divide into {shards} equal "
                f"shards; nearest sizes: {base * shards} or {(base + 1) * shards}."
            )
        bounds = [rank * base + min(rank, extra) for rank in range(shards + 1)]
        return [
            self.slice(start, end)
            for start, end in zip(bounds[:-1], bounds[1:], strict=True)
        ]

    def repeat_interleave(self, n: int) -> BatchedDataDict:
        """Return each row n times in a row: a, a, b, b, ...; tensors are copies."""
        if n < 1:
            raise DataError(f"Rows cannot be repeated {n} times.")

        def repeat(column: Column) -> Column:
            if isinstance(column, torch.Tensor):
                return column.repeat_interleave(n, dim=0)
            return [row for row in column for _ in range(n)]

        return self._map(repeat)

    def select(self, indices: Sequence[int] | torch.Tensor) -> BatchedDataDict:
        """Return the rows at the indices, in that order; a bool tensor is a mask.

        Raises:
            DataError: An index lies outside the batch, or a mask has another length.
        """
        rows = self._row_numbers(indices)
        index = torch.tensor(rows, dtype=torch.long)

        def pick(column: Column) -> Column:
            if isinstance(column, torch.Tensor):
                return column[index.to(column.device)]
            return [column[row] for row in rows]

        return self._map(pick)

    def reorder(self, indices: Sequence[int] | torch.Tensor) -> BatchedDataDict:
        """Return all rows in another order: row i of the result is indices[i].

        Raises:
            DataError: The indices are not a permutation of the rows.
        """
        rows = self._row_numbers(indices)
        if sorted(rows) != list(range(self.size)):
            raise DataError(
                f"reorder() needs each of the {self.size} rows once, got {rows[:16]}"
                f"{' ...' if len(rows) > 16 else ''}; select() takes any rows."
            )
        return self.select(rows)

    @classmethod
    def from_batches(
        cls,
        batches: Sequence[Mapping[str, Any]],
        pad_values: Mapping[str, float] | None = None,
    ) -> BatchedDataDict:
        """Join batches along the rows.

        Tensors of two or more dimensions are padded on the right of dim 1 to the
        longest of them, with ``pad_values[key]`` or 0.

        Raises:
            DataError: No batches, different columns, or shapes that no padding joins.
        """
        if not batches:
            raise DataError("There are no batches to join.")
        keys = list(batches[0])
        for number, batch in enumerate(batches):
            odd = sorted(set(keys) ^ set(batch))
            if odd:
                raise DataError(
                    f"Batch {number} and batch 0 differ in the columns {odd}."
                )
        pad_values = pad_values or {}
        return cls(
            {
                key: _join(key, [_as_column(key, b[key]) for b in batches], pad_values)
                for key in keys
            }
        )

    def to(self, device: torch.device | str) -> BatchedDataDict:
        """Return the batch with every tensor on the device; lists are shared."""
        return self._map(
            lambda column: (
                column.to(device) if isinstance(column, torch.Tensor) else column
            )
        )

    def _map(self, change) -> BatchedDataDict:
        return type(self)({key: change(column) for key, column in self.data.items()})

    def _row_numbers(self, indices: Sequence[int] | torch.Tensor) -> list[int]:
        if isinstance(indices, torch.Tensor) and indices.dtype == torch.bool:
            if indices.shape != (self.size,):
                raise DataError(
                    f"A mask of shape {tuple(indices.shape)} does not fit "
                    f"{self.size} rows."
                )
            indices = indices.nonzero().flatten()
        rows = [int(index) for index in indices]
        outside = [row for row in rows if not 0 <= row < self.size]
        if outside:
            raise DataError(
                f"Row {outside[0]} does not lie in a batch of {self.size} rows."
            )
        return rows


def _as_column(key: str, value: Any) -> Column:
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        return value
    if isinstance(value, (list, tuple)):
        return list(value)
    what = "a 0-dim tensor" if isinstance(value, torch.Tensor) else type(value).__name__
    raise DataError(
        f"Column {key!r} is {what}; a batch holds tensors with the batch first, "
        "or lists."
    )


def _check_lengths(columns: Mapping[str, Column]) -> None:
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise _lengths_error(lengths)


def _lengths_error(lengths: Mapping[str, int]) -> DataError:
    listing = ", ".join(f"{key}: {length}" for key, length in lengths.items())
    return DataError(f"Columns of one batch differ in their number of rows: {listing}.")


def _join(key: str, columns: list[Column], pad_values: Mapping[str, float]) -> Column:
    if all(isinstance(column, list) for column in columns):
        return [row for column in columns for row in column]
    tensors = [column for column in columns if isinstance(column, torch.Tensor)]
    if len(tensors) < len(columns):
        raise DataError(f"Column {key!r} is a tensor in one batch, a list in another.")
    if tensors[0].dim() >= 2:
        tensors = _padded(tensors, pad_values.get(key, 0))
    shapes = {(tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors}
    if len(shapes) > 1:
        raise DataError(f"Column {key!r} has shapes that do not join: {shapes}.")
    return torch.cat(tensors, dim=0)


def _padded(columns: list[torch.Tensor], value: float) -> list[torch.Tensor]:
    longest = max(column.shape[1] if column.dim() > 1 else 0 for column in columns)
    padded = []
    for column in columns:
        missing = longest - column.shape[1] if column.dim() > 1 else 0
        if missing:
            filler = column.new_full(
                (column.shape[0], missing, *column.shape[2:]), value
            )
            column = torch.cat([column, filler], dim=1)
        padded.append(column)
    return padded
