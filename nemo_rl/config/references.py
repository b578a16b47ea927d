"""References between keys of a recipe: ${policy.model_name}, ${mul:2,${grpo.seed}}.

The subset of OmegaConf's syntax that NeMo-RL recipes use; no environment variables,
so that no secret can get into a configuration that is written to disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError

_INNERMOST = re.compile(r"\$\{([^${}]*)\}")

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mul": lambda *values: math.prod(values),
    "add": lambda *values: sum(values),
    "sub": lambda first, second: first - second,
    "div": lambda first, second: first // second,
    "max": max,
    "min": min,
}


def resolve_references(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with every reference replaced by the value it names.

    A text that is one reference takes the value's type; one within a text is
    written into it.

    Raises:
        ConfigurationError: a reference names no key, goes in a circle, or uses an
            unknown function; names the key that holds it.
    """
    return {key: _resolve(value, mapping, key, ()) for key, value in mapping.items()}


def _resolve(
    value: Any, root: Mapping[str, Any], where: str, trail: tuple[str, ...]
) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _resolve(item, root, f"{where}.{key}", trail)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_resolve(item, root, where, trail) for item in value]
    while isinstance(value, str) and (match := _INNERMOST.search(value)):
        found = _value_of(match.group(1).strip(), root, where, trail)
        if match.group(0) == value:
            return found
        value = value[: match.start()] + str(found) + value[match.end() :]
    return value


def _value_of(
    expression: str, root: Mapping[str, Any], where: str, trail: tuple[str, ...]
) -> Any:
    function, colon, arguments = expression.partition(":")
    if colon:
        return _call(function, arguments, where)
    if expression in trail:
        raise ConfigurationError(
            f"{where}: references go in a circle: {' -> '.join((*trail, expression))}."
        )
    node: Any = root
    for part in expression.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise ConfigurationError(
                f"{where} refers to ${{{expression}}}, which the recipe does not set."
            )
        node = node[part]
    return _resolve(node, root, where, (*trail, expression))


def _call(function: str, arguments: str, where: str) -> Any:
    if function not in _FUNCTIONS:
        raise ConfigurationError(
            f"{where}: ${{{function}:...}} is not a function of recipes. "
            f"There are: {', '.join(_FUNCTIONS)}."
        )
    try:
        numbers = [
            float(text) if "." in text or "e" in text else int(text)
            for text in arguments.split(",")
        ]
        return _FUNCTIONS[function](*numbers)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ConfigurationError(
            f"{where}: ${{{function}:{arguments}}} cannot be computed: {error}."
        ) from error
