"""Names of engines to their classes; imports an engine only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from nemo_rl.config.backends import BUILT_IN, REGISTERED
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object
from nemo_rl.utils.suggest import did_you_mean

_Class = TypeVar("_Class", bound=type)


def register(kind: str, name: str) -> Callable[[_Class], _Class]:
    """Class decorator that adds an engine under ``name``.

    Raises:
        ConfigurationError: the name is taken by another class.
    """

    def add(cls: _Class) -> _Class:
        taken = REGISTERED[kind].get(name)
        if name in BUILT_IN[kind] or (taken is not None and not _same(taken, cls)):
            raise ConfigurationError(
                f"a {kind} backend named {name!r} exists already; choose another name"
            )
        REGISTERED[kind][name] = cls
        return cls

    return add


def _same(one: type, other: type) -> bool:
    """Whether two classes are one, or the same one read twice or sent to a worker."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def lookup(kind: str, name: str) -> type:
    """The class of a backend.

    Args:
        kind: ``"training"`` or ``"generation"``.
        name: registered or built-in name, or "module:Class".

    Raises:
        ConfigurationError: unknown name.
    """
    if name in REGISTERED[kind]:
        return REGISTERED[kind][name]
    if name in BUILT_IN[kind]:
        return import_object(BUILT_IN[kind][name])
    if ":" in name:
        return import_object(name)
    known = sorted([*BUILT_IN[kind], *REGISTERED[kind]])
    raise ConfigurationError(
        f"unknown {kind} backend {name!r}; known: {', '.join(known)}, or "
        f"'module:Class'.{did_you_mean(name, known)}"
    )


class BackendFactory:
    """The registry of engines as one object.

    Example:
        >>> BackendFactory.lookup("generation", "hf").__name__
        'HFBackend'
    """

    register = staticmethod(register)
    lookup = staticmethod(lookup)

    @staticmethod
    def create(kind: str, name: str) -> Any:
        """A new engine; arguments and errors as for ``lookup``."""
        return lookup(kind, name)()


def own_classes(training: str, generation: str) -> dict[tuple[str, str], type]:
    """Those of the chosen backends that are not ours, for ``adopt`` in a worker.

    A class that was registered in the driver's script is known there alone.

    Raises:
        ConfigurationError: as ``lookup``.
    """
    chosen = {"training": training, "generation": generation}
    return {
        (kind, name): lookup(kind, name)
        for kind, name in chosen.items()
        if name and name not in BUILT_IN[kind]
    }


def adopt(classes: dict[tuple[str, str], type]) -> None:
    """Make the classes of another process known in this one, under their names."""
    for (kind, name), cls in classes.items():
        REGISTERED[kind][name] = cls


def get_training_backend(name: str):
    """A new training engine by name; ``setup(config)`` makes it usable."""
    return BackendFactory.create("training", name)


def get_generation_backend(name: str):
    """A new generation engine by name; ``setup(config)`` makes it usable."""
    return BackendFactory.create("generation", name)
