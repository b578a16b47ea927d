"""Words for what is wrong in a configuration; knows pydantic's errors, no section."""

from __future__ import annotations

from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nemo_rl.utils.suggest import did_you_mean


def describe(root: type[BaseModel], error: ValidationError) -> str:
    """Return one line per problem, each with the full path of its key."""
    lines = [_line(root, problem) for problem in error.errors(include_url=False)]
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{len(lines)} problems:", *(f"- {line}" for line in lines)])


def describe_unknown(owner: type[BaseModel], name: str, prefix: str = "") -> str:
    """Say that a section has no such field, with the closest that it has."""
    choices = list(owner.model_fields)
    hint = did_you_mean(name, choices)
    if not hint:
        hint = f" {prefix.rstrip('.') or owner.__name__} has: {', '.join(choices)}."
    return f"{prefix}{name} is not a field.{hint}"


def _line(root: type[BaseModel], problem: Any) -> str:
    location: Sequence[str | int] = problem["loc"]
    path = _dotted(location)
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        owner = _section_at(root, location[:-1]) or root
        prefix = f"{_dotted(location[:-1])}." if len(location) > 1 else ""
        return describe_unknown(owner, str(location[-1]), prefix)
    if kind == "missing":
        owner = _section_at(root, location[:-1])
        field = owner.model_fields.get(str(location[-1])) if owner else None
        about = (field.description or "").split("\n")[0] if field else ""
        return f"{path} is required" + (f": {about}" if about else ".")
    if kind == "value_error":
        # A section's own validator: `value` is the whole section, not worth showing.
        message = str(context["error"])
        if _section_at(root, location) is not None:
            return f"{path}: {message}" if path else message
        return f"{path}={value!r} {message}"
    if kind == "literal_error":
        names = [name.strip(" '") for name in _choices(context["expected"])]
        return (
            f"{path}={value!r} is not one of {', '.join(names)}."
            f"{did_you_mean(str(value), names)}"
        )
    message = problem["msg"].replace("Input should be", "expected")
    return f"{path}={value!r}: {message}."


def _choices(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(",")


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _section_at(
    root: type[BaseModel], location: Sequence[str | int]
) -> type[BaseModel] | None:
    """Follow a path through nested sections to the section class at its end."""
    current: Any = root
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if current else None
        current = section_in(field.annotation) if field else None
    return current


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section class within `X`, `X | None` or `list[X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list, dict):
        for argument in get_args(annotation):
            found = section_in(argument)
            if found is not None:
                return found
    return None
