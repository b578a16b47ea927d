"""Files of rows by their ending: JSONL, JSON, CSV, Parquet, Arrow.

Knows no field of a row and no folder; `hub.py` opens folders.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nemo_rl.data.datasets.jsonl import JsonlDataset
from nemo_rl.data.datasets.views import NamedRows
from nemo_rl.utils.exceptions import DataError
from nemo_rl.utils.imports import require
from nemo_rl.utils.suggest import did_you_mean

_UNPACK = {
    ".bz2": "bunzip2 -k",
    ".gz": "gunzip -k",
    ".tar": "tar -xf",
    ".tgz": "tar -xf",
    ".xz": "xz -dk",
    ".zip": "unzip",
    ".zst": "zstd -d",
}


def open_file(path: Path) -> Any:
    """Return the rows of a file.

    Raises:
        DataError: The ending says nothing, the file is compressed, or it is not what
            its ending says.
    """
    ending = path.suffix.lower()
    if ending in _UNPACK:
        raise DataError(
            f"{path} is compressed, and rows are read from their places in the file. "
            f"Unpack it: {_UNPACK[ending]} {path}"
        )
    if ending not in READERS:
        raise DataError(
            f"{path}: the ending {ending!r} is none of {', '.join(READERS)}."
            f"{did_you_mean(ending, READERS)}"
        )
    return READERS[ending](path)


class ListedRows:
    """Rows that were read at once, with what messages call them.

    Args:
        path: Their file.
        rows: The rows.
        places: Where each stands: "line 7".
    """

    def __init__(
        self, path: Path, rows: list[dict[str, Any]], places: list[str]
    ) -> None:
        """Keep them."""
        self._path, self._rows, self._places = path, rows, places

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        return self._rows[idx]

    def describe_row(self, idx: int) -> str:
        """Say where a row stands, for messages."""
        return f"{self._path}, {self._places[idx]}"


def _json(path: Path) -> ListedRows:
    """Read a file that holds one list of objects."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        lines = " If it holds one object per line, call it .jsonl."
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg})."
            f"{lines if error.msg == 'Extra data' else ''}"
        ) from error
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: expected a list of objects, got {type(entries).__name__}."
        )
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(
                f"{path}, entry {number}: expected an object, got "
                f"{type(entry).__name__}."
            )
    return ListedRows(path, entries, [f"entry {n}" for n in range(len(entries))])


def _csv(path: Path) -> ListedRows:
    """Read a table whose first line names its columns; every value is a text."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    # Answers to be trained on are longer than the module's limit of 128 KiB.
    csv.field_size_limit(sys.maxsize)
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    line = 0
    try:
        with path.open("rb") as file:
            reader = csv.reader(_decoded(file, path), delimiter=separator, strict=True)
            names = _column_names(next(reader, []), path)
            line = reader.line_num
            for values in reader:
                start, line = line + 1, reader.line_num
                if not values:
                    continue
                if len(values) != len(names):
                    raise DataError(
                        f"{path}, line {start}: has {len(values)} values and the "
                        f"header names {len(names)} columns ({', '.join(names)})."
                    )
                rows.append(dict(zip(names, values, strict=True)))
                places.append(f"line {start}")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except csv.Error as error:
        raise DataError(f"{path}, line {line + 1}: not CSV ({error}).") from error
    return ListedRows(path, rows, places)


def _decoded(file: Any, path: Path) -> Iterator[str]:
    for number, raw in enumerate(file, start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 (byte {raw[error.start]:#04x} at "
                f"column {error.start + 1})."
            ) from error


def _column_names(names: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: names {', '.join(map(repr, twice))} twice.")
    if names and not all(name.strip() for name in names):
        raise DataError(f"{path}, line 1: a column has no name: {', '.join(names)}.")
    return names


def _parquet(path: Path) -> NamedRows:
    return _table(path, lambda datasets: datasets.Dataset.from_parquet(str(path)))


def _arrow(path: Path) -> NamedRows:
    return _table(path, lambda datasets: datasets.Dataset.from_file(str(path)))


def _table(path: Path, read: Callable[[Any], Any]) -> NamedRows:
    """Open a table that the ``datasets`` library maps into memory."""
    datasets = require("datasets")
    try:
        return NamedRows(read(datasets), str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise DataError(
            f"{path} cannot be read as {path.suffix.lower().lstrip('.').title()}: "
            f"{reason}"
        ) from error


READERS: dict[str, Callable[[Path], Any]] = {
    ".jsonl": JsonlDataset,
    ".ndjson": JsonlDataset,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""Ending of a file -> what opens it."""
