"""Rows that are other rows, named, chosen or rewritten; knows no field and no file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from nemo_rl.utils.exceptions import DataError


def describe_row(rows: Any, idx: int) -> str:
    """Say where a row stands, for messages: by file and line where that is known."""
    describe = getattr(rows, "describe_row", None)
    return describe(idx) if describe is not None else f"row {idx}"


def column(rows: Any, key: str) -> list[Any]:
    """Return one field of every row, None where a row lacks it.

    A table hands its column out as a whole; other rows are read one by one.
    """
    whole = getattr(rows, "column", None)
    if whole is not None:
        return whole(key)
    return [rows[idx].get(key) for idx in range(len(rows))]


class NamedRows:
    """A table of the ``datasets`` library with a name for its rows in messages.

    Args:
        rows: A ``datasets.Dataset``.
        name: Its file, folder or name on the hub.
    """

    def __init__(self, rows: Any, name: str) -> None:
        """Keep the table."""
        self.rows = rows
        self._name = name

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        return self.rows[int(idx)]

    def column(self, key: str) -> list[Any]:
        """Return one field of every row."""
        return list(self.rows[key])

    def describe_row(self, idx: int) -> str:
        """Say where a row stands, for messages."""
        return f"{self._name}, row {idx}"


class ChosenRows:
    """Some rows of a dataset, in a given order.

    Args:
        rows: The dataset.
        chosen: Indices of its rows; one may occur several times.
    """

    def __init__(self, rows: Any, chosen: Sequence[int] | np.ndarray) -> None:
        """Keep the dataset and the choice."""
        self._rows = rows
        self._chosen = chosen
        self.default_environment = getattr(rows, "default_environment", None)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._chosen)

    def __getitem__(self, idx: int) -> Any:
        """Return a row."""
        return self._rows[int(self._chosen[idx])]

    def describe_row(self, idx: int) -> str:
        """Say where the row stands in the whole dataset."""
        return describe_row(self._rows, int(self._chosen[idx]))


class RewrittenRows:
    """Rows of a dataset, each passed through a function when it is asked for.

    Args:
        rows: The dataset.
        rewrite: From a row, and how messages call it, to a row.
        prefix: Put before the row's place in messages.
    """

    def __init__(
        self,
        rows: Any,
        rewrite: Callable[[Mapping[str, Any], str], dict[str, Any]],
        *,
        prefix: str = "",
    ) -> None:
        """Keep both; nothing is rewritten yet."""
        self._rows = rows
        self._rewrite = rewrite
        self._prefix = prefix
        self.default_environment = getattr(rows, "default_environment", None)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row, rewritten.

        Raises:
            DataError: It is no mapping, or has not the fields that are rewritten.
        """
        row = self._rows[idx]
        if not isinstance(row, Mapping):
            raise DataError(
                f"{self.describe_row(idx)}: expected a mapping of fields, got "
                f"{type(row).__name__}."
            )
        return self._rewrite(row, self.describe_row(idx))

    def describe_row(self, idx: int) -> str:
        """Say where the row stands, for messages."""
        return f"{self._prefix}{describe_row(self._rows, idx)}"


class JoinedRows:
    """Several datasets one after the other.

    Args:
        parts: The datasets.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        """Keep them."""
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._ends[-1]

    def __getitem__(self, idx: int) -> Any:
        """Return a row."""
        part, inside = self._place(idx)
        return part[inside]

    def column(self, key: str) -> list[Any]:
        """Return one field of every row."""
        return [value for part in self._parts for value in column(part, key)]

    def describe_row(self, idx: int) -> str:
        """Say where the row stands in its own dataset."""
        return describe_row(*self._place(idx))

    def _place(self, idx: int) -> tuple[Any, int]:
        if not 0 <= idx < len(self):
            raise IndexError(f"row {idx} of {len(self)}")
        number = bisect_right(self._ends, idx)
        before = self._ends[number - 1] if number else 0
        return self._parts[number], idx - before
