"""Rows of a JSONL file, found by their place: the file is never held in memory.

A bad line is named by its number. Knows no field of a row.
"""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rl.utils.exceptions import DataError

CHECKED_BYTES = 64 * 2**20
"""Files up to this size are checked whole when they are opened."""
CHECKED_LINES = 4096
"""Lines at the beginning of a larger file that are; its last line is too."""
_CHUNK = 16 * 2**20
_BOM = b"\xef\xbb\xbf"
_NO_OBJECT = 4
"""No object with a field fits into as many bytes; such a line may be blank."""


class JsonlDataset:
    """One JSON object per line; memory grows with the lines, not with their length.

    Opening a file reads it once to find its lines (24 bytes are kept of each). A row is
    read from the disk and decoded when it is asked for.

    Args:
        path: The file, UTF-8. Empty lines are skipped.

    Raises:
        DataError: The file cannot be read, or a checked line is no JSON object; the
            lines that are not checked raise when their turn comes.
    """

    def __init__(self, path: str | Path) -> None:
        """Find the lines and check the first ones and the last."""
        self.path = Path(path)
        try:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            self._starts, self._lengths, self._lines = self._find_lines()
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error
        count = len(self)
        size = int(self._starts[-1] + self._lengths[-1]) if count else 0
        checked = count if size <= CHECKED_BYTES else min(count, CHECKED_LINES)
        for idx in {*range(checked), *([count - 1] if count else [])}:
            self._object(idx)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._lines)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Read a row.

        Raises:
            DataError: Its line is no JSON object, or is no longer there.
        """
        return self._object(idx)

    def __reduce__(self) -> Any:
        """Open the file anew in another process: its number means nothing there."""
        return type(self), (self.path,)

    def describe_row(self, idx: int) -> str:
        """Say where a row stands, for messages: ``train.jsonl, line 7``."""
        return f"{self.path}, line {self._lines[idx]}"

    def _find_lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return start, length and number of every line that is not empty."""
        ends, size = [], 0
        # Only \n ends a line: JSON strings may hold other line separators.
        while chunk := os.pread(self._file, _CHUNK, size):
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10) + size)
            size += len(chunk)
        stops = np.concatenate([*ends, [size]]).astype(np.int64)
        starts = np.concatenate([[0], stops[:-1] + 1]).astype(np.int64)
        if os.pread(self._file, len(_BOM), 0) == _BOM:
            starts[0] = len(_BOM)
        lengths = stops - starts
        kept = lengths > 0
        for idx in np.flatnonzero(kept & (lengths <= _NO_OBJECT)):
            piece = os.pread(self._file, int(lengths[idx]), int(starts[idx]))
            kept[idx] = bool(piece.strip())
        numbers = np.flatnonzero(kept) + 1
        return starts[kept], lengths[kept], numbers

    def _object(self, idx: int) -> dict[str, Any]:
        # pread, not a memory map: a file cut short while it is mapped kills the
        # process, here it is an error that names the line.
        length = int(self._lengths[idx])
        raw = os.pread(self._file, length, int(self._starts[idx]))
        if len(raw) != length:
            raise DataError(
                f"{self.describe_row(idx)}: the file was cut short after it was opened."
            )
        try:
            row = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.describe_row(idx)}: not UTF-8 (byte {raw[error.start]:#04x} at "
                f"column {error.start + 1})."
            ) from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.describe_row(idx)}: not JSON ({error.msg}, column "
                f"{error.colno})."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{self.describe_row(idx)}: expected an object, got "
                f"{type(row).__name__}."
            )
        return row
