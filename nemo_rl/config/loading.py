"""YAML files -> one resolved mapping: parents, overrides, references; no validation.

A file may name parents in `defaults:` (one path or a list, relative to the file);
later ones win over earlier ones and the file itself wins over all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.config.base import merge
from nemo_rl.config.references import resolve_references
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 1e-6 as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _construct_str(loader: _Loader, node: Any) -> Any:
    text = loader.construct_scalar(node)
    # YAML 1.1 takes an exponent without a point or sign for text: 1e-6.
    if node.style is None and "e" in text.lower() and text[0] in "+-.0123456789":
        number = _number(text)
        if number is not None:
            return number
    return text


_Loader.add_constructor("tag:yaml.org,2002:str", _construct_str)
# YAML 1.1 gives a lone "=" a type of its own, which nothing can construct.
_Loader.add_constructor("tag:yaml.org,2002:value", _construct_str)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text.

    Raises:
        ConfigurationError: it is not YAML; names source, line and column.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigurationError(
            f"{source}{where}: not valid YAML: {error.problem}."
        ) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: not valid YAML: {error}.") from error


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a recipe and its parents, references still unresolved.

    Raises:
        ConfigurationError: a file is missing, is not YAML, holds no mapping, or is
            its own ancestor.
    """
    return _load(Path(path), ())


def _load(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in children:
        chain = " -> ".join(str(p) for p in (*children, path))
        raise ConfigurationError(f"defaults go in a circle: {chain}.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        named = f", named by defaults of {children[-1]}" if children else ""
        siblings = (
            [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        )
        raise ConfigurationError(
            f"no recipe {path}{named}.{did_you_mean(path.name, siblings)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    content = parse_yaml(text, str(path)) or {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} holds a {type(content).__name__}; expected keys and values."
        )
    parents = content.pop("defaults", None) or []
    if isinstance(parents, str):
        parents = [parents]
    merged: dict[str, Any] = {}
    for parent in parents:
        if not isinstance(parent, str):
            raise ConfigurationError(
                f"{path}: defaults must be a path or a list of paths, not {parent!r}."
            )
        merged = merge(merged, _load(path.parent / parent, (*children, path)))
    return merge(merged, content)


def apply_overrides(
    mapping: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """Return a copy of a mapping with "section.key=value" overrides, values as YAML.

    Example:
        >>> apply_overrides({"grpo": {"seed": 1}}, ["grpo.seed=2"])
        {'grpo': {'seed': 2}}

    Raises:
        ConfigurationError: an override has no "=", an empty key or runs through a
            value that is no section.
    """
    result = merge({}, mapping)
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip().removeprefix("++").removeprefix("+")
        parts = key.split(".")
        if not equals or not all(parts):
            raise ConfigurationError(
                f"override {override!r} must be key=value, for example grpo.seed=1."
            )
        node = result
        for depth, part in enumerate(parts[:-1], start=1):
            below = node.get(part)
            if below is not None and not isinstance(below, dict):
                raise ConfigurationError(
                    f"override {override!r}: {'.'.join(parts[:depth])} is "
                    f"{below!r}, not a section."
                )
            node[part] = dict(below or {})
            node = node[part]
        node[parts[-1]] = parse_yaml(text, f"override {override!r}")
    return result


def load_recipe_mapping(
    path: Path | str, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a recipe with parents, overrides applied and references resolved."""
    return resolve_references(apply_overrides(load_yaml(path), overrides))
