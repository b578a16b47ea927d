"""Lazy package exports (PEP 562): names resolve to their module on first use.

It knows no names itself. `import nemo_rl` stays fast and free of torch because
every package `__init__` is a docstring and one call of `lazy_exports`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

Exports = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def lazy_exports(package: str, exports: Mapping[str, str]) -> Exports:
    """Build `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: the package's `__name__`.
        exports: public name -> module that defines it; "module:other" where the
            object has another name there.

    Returns:
        `(__getattr__, __dir__, __all__)`, to be assigned in the package.

    Raises:
        ValueError: an exported name equals a submodule of the package: importing
            the submodule would replace the exported object.
    """
    for name, target in exports.items():
        if target.partition(":")[0] == f"{package}.{name}":
            raise ValueError(
                f"{package} cannot export {name!r}: {target} is a module of that name"
            )

    def __getattr__(name: str) -> Any:
        if name in exports:
            module, _, attribute = exports[name].partition(":")
            value = getattr(import_module(module), attribute or name)
            setattr(sys.modules[package], name, value)
            return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports})

    return __getattr__, __dir__, sorted(exports)
