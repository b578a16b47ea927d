"""Rows of a local JSONL (or JSON list) file; a bad line is named by its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import DataError


class JsonlDataset:
    """One JSON object per line; a ``.json`` file holds a list of objects.

    Args:
        path: The file, UTF-8. Empty lines are skipped.

    Raises:
        DataError: The file cannot be read, or a line is no JSON object.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the whole file."""
        self.path = Path(path)
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error
        if self.path.suffix == ".json":
            self._rows, self._lines = self._from_list(text)
        else:
            self._rows, self._lines = self._from_lines(text)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        return self._rows[idx]

    def describe_row(self, idx: int) -> str:
        """Say where a row stands, for messages: ``train.jsonl, line 7``."""
        what = "entry" if self.path.suffix == ".json" else "line"
        return f"{self.path}, {what} {self._lines[idx]}"

    def _from_lines(self, text: str) -> tuple[list[dict], list[int]]:
        rows, lines = [], []
        # Only \n ends a line: JSON strings may hold other line separators.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{self.path}, line {number}: not JSON ({error.msg} at column "
                    f"{error.colno})."
                ) from error
            rows.append(self._object(row, f"line {number}"))
            lines.append(number)
        return rows, lines

    def _from_list(self, text: str) -> tuple[list[dict], list[int]]:
        try:
            entries = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}, line {error.lineno}: not JSON ({error.msg})."
            ) from error
        if not isinstance(entries, list):
            raise DataError(f"{self.path}: expected a list of objects.")
        rows = [self._object(e, f"entry {n}") for n, e in enumerate(entries)]
        return rows, list(range(len(rows)))

    def _object(self, row: Any, where: str) -> dict[str, Any]:
        if not isinstance(row, dict):
            raise DataError(
                f"{self.path}, {where}: expected an object, got {type(row).__name__}."
            )
        return row
