"""Fields of a row, checked: each complaint names row, field, and what was expected.

Knows no dataset; these are what the tables of named datasets read columns with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.utils.exceptions import DataError
from nemo_rl.utils.suggest import did_you_mean


def field(row: Mapping[str, Any], key: str, where: str) -> Any:
    """Return a field of a row.

    Raises:
        DataError: The row has no such field.
    """
    if key not in row:
        raise DataError(
            f"{where}: has no field {key!r}; its fields are "
            f"{', '.join(map(str, row))}.{did_you_mean(key, map(str, row))}"
        )
    return row[key]


def text(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return a field that is a text and not empty.

    Raises:
        DataError: It is missing, empty or something else.
    """
    value = field(row, key, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{where}: field {key!r} must be a text that is not empty, got "
            f"{shown(value)}."
        )
    return value


def whole_number(value: Any, key: str, where: str, *, lowest: int, highest: int) -> int:
    """Return a value that is a whole number of a range.

    Raises:
        DataError: It is something else.
    """
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right or value != value or not lowest <= value <= highest or value % 1:
        raise DataError(
            f"{where}: field {key!r} must be a whole number from {lowest} to "
            f"{highest}, got {shown(value)}."
        )
    return int(value)


def turns(row: Mapping[str, Any], key: str, where: str) -> list[dict[str, str]]:
    """Return a field that is a conversation: a list of ``{"role", "content"}``.

    Raises:
        DataError: It is empty, or one of its entries is no message.
    """
    value = field(row, key, where)
    if not isinstance(value, (list, tuple)) or not value:
        raise DataError(
            f"{where}: field {key!r} must be a list of messages that is not empty, "
            f"got {shown(value)}."
        )
    read = []
    for number, message in enumerate(value):
        place = f"{where}: {key}[{number}]"
        if not isinstance(message, Mapping):
            raise DataError(
                f"{place}: expected {{'role': ..., 'content': ...}}, got "
                f"{shown(message)}."
            )
        for part in ("role", "content"):
            if not isinstance(message.get(part), str):
                raise DataError(
                    f"{place}: field {part!r} must be a text, got "
                    f"{shown(message.get(part))}."
                )
        read.append({"role": message["role"], "content": message["content"]})
    return read


def shown(value: Any, limit: int = 80) -> str:
    """Return a value as messages show it: cut where it is long."""
    written = repr(value)
    return written if len(written) <= limit else f"{written[:limit]}..."
