"""Names of engines to their classes; imports an engine only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object
from nemo_rl.utils.suggest import did_you_mean

_BUILT_IN: dict[str, dict[str, str]] = {
    "training": {
        "megatron": "nemo_rl.backends.training.megatron.backend:MegatronBackend",
    },
    "generation": {
        "megatron": "nemo_rl.backends.generation.megatron:MegatronInferenceBackend",
    },
}
_NOT_YET: dict[str, dict[str, str]] = {
    "training": {"dtensor": "use 'megatron'"},
    "generation": {"vllm": "use 'megatron'", "hf": "use 'megatron'"},
}
_REGISTERED: dict[str, dict[str, type]] = {"training": {}, "generation": {}}
_Class = TypeVar("_Class", bound=type)


def register(kind: str, name: str) -> Callable[[_Class], _Class]:
    """Class decorator that adds an engine under ``name``.

    Raises:
        ConfigurationError: the name is taken by another class.
    """

    def add(cls: _Class) -> _Class:
        taken = _REGISTERED[kind].get(name)
        if name in _BUILT_IN[kind] or (taken is not None and taken is not cls):
            raise ConfigurationError(
                f"a {kind} backend named {name!r} exists already; choose another name"
            )
        _REGISTERED[kind][name] = cls
        return cls

    return add


def lookup(kind: str, name: str) -> type:
    """The class of a backend.

    Args:
        kind: ``"training"`` or ``"generation"``.
        name: registered or built-in name.

    Raises:
        ConfigurationError: unknown name, or one that this version lacks.
    """
    if name in _REGISTERED[kind]:
        return _REGISTERED[kind][name]
    if name in _BUILT_IN[kind]:
        return import_object(_BUILT_IN[kind][name])
    if name in _NOT_YET[kind]:
        raise ConfigurationError(
            f"the {kind} backend {name!r} is not part of this version; "
            f"{_NOT_YET[kind][name]}"
        )
    known = sorted([*_BUILT_IN[kind], *_REGISTERED[kind]])
    raise ConfigurationError(
        f"unknown {kind} backend {name!r}; known: {', '.join(known)}."
        f"{did_you_mean(name, known)}"
    )


def get_training_backend(name: str):
    """A new training engine by name; ``setup(config)`` makes it usable."""
    return lookup("training", name)()


def get_generation_backend(name: str):
    """A new generation engine by name; ``setup(config)`` makes it usable."""
    return lookup("generation", name)()
