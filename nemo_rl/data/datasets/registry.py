"""load_dataset: from a name, a file or a folder to rows by index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError, DataError
from nemo_rl.utils.imports import import_object, require
from nemo_rl.utils.suggest import did_you_mean

_BUILT_IN: dict[str, str] = {
    "arithmetic": "nemo_rl.data.datasets.arithmetic:ArithmeticDataset",
    "reasoning_gym": "nemo_rl.data.datasets.reasoning_gym:ReasoningGymDataset",
    "reverse_digits": "nemo_rl.data.datasets.reverse:ReverseDigitsDataset",
    "sliding_puzzle": "nemo_rl.data.datasets.sliding_puzzle:SlidingPuzzleDataset",
}
_registered: dict[str, Callable[..., Any]] = {}


def register_dataset(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a class or function known as ``data.dataset_name: <name>``.

    Example:
        >>> @register_dataset("squares")
        ... def squares(split="train"):
        ...     return [{"prompt": f"{i} * {i} =", "answer": i * i} for i in range(9)]
    """

    def remember(factory: Callable[..., Any]) -> Callable[..., Any]:
        _registered[name] = factory
        return factory

    return remember


def dataset_names() -> list[str]:
    """Return every registered name."""
    return sorted({*_BUILT_IN, *_registered})


def load_dataset(name: str, *, search_dir: Path | str | None = None, **kwargs: Any):
    """Return the rows of a dataset.

    Args:
        name: Registered name; "module:object" beside the recipe; a .jsonl or .json
            file; a folder written by ``save_to_disk``; else a name on the hub.
        search_dir: Folder of the recipe; relative files are also looked for there.
        **kwargs: Arguments of the dataset, such as ``split``.

    Returns:
        An object with ``len()`` and ``[index]``.

    Raises:
        ConfigurationError: No dataset of that name, or it has not these arguments.
        DataError: The file or folder holds no usable rows.
    """
    if name in _registered:
        return _build(name, _registered[name], kwargs)
    if name in _BUILT_IN:
        return _build(name, import_object(_BUILT_IN[name]), kwargs)
    if ":" in name:
        found = import_object(name, search_dir=search_dir)
        return _build(name, found, kwargs) if callable(found) else found
    path = _existing(name, search_dir)
    if path is not None and path.is_file():
        from nemo_rl.data.datasets.jsonl import JsonlDataset

        return _build(name, JsonlDataset, {"path": path, **kwargs})
    if path is not None:
        return _from_disk(path, **kwargs)
    if Path(name).suffix in (".json", ".jsonl") or name.startswith((".", "/", "~")):
        raise DataError(
            f"The data file or folder {name!r} does not exist (looked in {Path.cwd()}"
            f"{f' and {search_dir}' if search_dir else ''})."
        )
    # Names on the hub have an owner, but for a few old ones: ask only if none is close.
    meant = did_you_mean(name, dataset_names()) if "/" not in name else ""
    if meant:
        raise ConfigurationError(
            f"No dataset {name!r}: not among {', '.join(dataset_names())}, and no file "
            f"or folder of that name.{meant}"
        )
    return _from_hub(name, **kwargs)


def takes_split(name: str) -> bool:
    """Return whether a registered dataset has a parameter ``split``."""
    import inspect

    factory: Any = _registered.get(name)
    if factory is None and name in _BUILT_IN:
        factory = import_object(_BUILT_IN[name])
    return factory is not None and "split" in inspect.signature(factory).parameters


def pick_split(found: Any, split: str | None, where: str) -> Any:
    """Return one split of a ``datasets.DatasetDict``, or what is no such dictionary."""
    if not hasattr(found, "keys"):
        return found
    wanted = split or "train"
    if wanted not in found:
        raise DataError(
            f"{where} has no split {wanted!r}; it has {', '.join(found)}."
            f"{did_you_mean(wanted, list(found))}"
        )
    return found[wanted]


def _build(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    import inspect

    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        names = [n for n in inspect.signature(factory).parameters if n != "self"]
        raise ConfigurationError(
            f"data.dataset_kwargs of {name!r}: {error}. It takes {', '.join(names)}."
        ) from error
    return factory(**kwargs)


def _existing(name: str, search_dir: Path | str | None) -> Path | None:
    path = Path(name).expanduser()
    places = [path] + ([Path(search_dir) / path] if search_dir is not None else [])
    return next((place for place in places if place.exists()), None)


def _from_disk(path: Path, split: str | None = None) -> Any:
    datasets = require("datasets")
    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{path} is not a folder written by datasets' save_to_disk(): {error}"
        ) from error
    return pick_split(found, split, str(path))


def _from_hub(name: str, split: str | None = None, **kwargs: Any) -> Any:
    datasets = require("datasets")
    try:
        found = datasets.load_dataset(name, split=split, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"No dataset {name!r}: not among {', '.join(dataset_names())}, no file or "
            f"folder of that name, and the Hugging Face hub gave none ({reason})."
            f"{did_you_mean(name, dataset_names())}"
        ) from error
    return pick_split(found, split, name)
