"""load_dataset: from a name, a file or a folder to rows by index."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nemo_rl.data.datasets.catalogue import PUBLISHED, open_published, published
from nemo_rl.data.datasets.files import READERS, open_file
from nemo_rl.data.datasets.hub import open_folder, open_hub
from nemo_rl.utils.exceptions import ConfigurationError, DataError
from nemo_rl.utils.imports import import_object
from nemo_rl.utils.suggest import did_you_mean

_BUILT_IN: dict[str, str] = {
    "arithmetic": "nemo_rl.data.datasets.arithmetic:ArithmeticDataset",
    "arithmetic_chat": "nemo_rl.data.datasets.arithmetic_chat:ArithmeticChatDataset",
    "arithmetic_preferences": (
        "nemo_rl.data.datasets.arithmetic_chat:ArithmeticPreferencesDataset"
    ),
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
    """Return every known name."""
    return sorted({*_BUILT_IN, *PUBLISHED, *_registered})


def load_dataset(name: str, /, *, search_dir: Path | str | None = None, **kwargs: Any):
    """Return the rows of a dataset.

    Args:
        name: Registered name or that of a published dataset; "module:object" beside
            the recipe; a file (.jsonl, .json, .csv, .parquet, .arrow); a folder,
            written by ``save_to_disk`` or laid out as on the hub; else a name on the
            hub.
        search_dir: Folder of the recipe; relative files are also looked for there.
        **kwargs: Arguments of the dataset, such as ``split``.

    Returns:
        An object with ``len()`` and ``[index]``.

    Raises:
        ConfigurationError: No dataset of that name, or it has not these arguments.
        DataError: The file or folder holds no usable rows.
    """
    if not name:
        raise ConfigurationError("data.dataset_name is empty: name a dataset, or null.")
    factory = _factory(name)
    if factory is not None:
        if isinstance(kwargs.get("path"), str):
            kwargs["path"] = _existing(kwargs["path"], search_dir) or kwargs["path"]
        return _build(name, factory, kwargs)
    if ":" in name:
        found = import_object(name, search_dir=search_dir)
        return _build(name, found, kwargs) if callable(found) else found
    path = _existing(name, search_dir)
    if path is not None and path.is_file():
        return _build(name, partial(open_file, path), kwargs)
    if path is not None:
        return open_folder(path, **kwargs)
    if Path(name).suffix.lower() in READERS or name.startswith((".", "/", "~")):
        raise DataError(
            f"The data file or folder {name!r} does not exist (looked in {Path.cwd()}"
            f"{f' and {search_dir}' if search_dir else ''})."
        )
    # Names on the hub have an owner, but for a few old ones: ask only if none is close.
    known = f"not among {', '.join(dataset_names())}, no file or folder of that name"
    meant = did_you_mean(name, dataset_names()) if "/" not in name else ""
    if meant:
        raise ConfigurationError(f"No dataset {name!r}: {known}.{meant}")
    return open_hub(name, instead=f"{known}, ", **kwargs)


def _factory(name: str) -> Callable[..., Any] | None:
    """Return what makes the rows of a known name, or None."""
    if name in _registered:
        return _registered[name]
    if name in _BUILT_IN:
        return import_object(_BUILT_IN[name])
    short = published(name)
    return partial(open_published, short) if short is not None else None


def takes_split(name: str) -> bool:
    """Return whether a registered dataset has a parameter ``split``."""
    import inspect

    factory = _factory(name)
    return factory is not None and "split" in inspect.signature(factory).parameters


def _build(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
    import inspect

    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        names = [n for n in inspect.signature(factory).parameters if n != "self"]
        raise ConfigurationError(
            f"data.dataset_kwargs of {name!r}: {error}. It takes "
            f"{', '.join(names) or 'none'}."
        ) from error
    return factory(**kwargs)


def _existing(name: str, search_dir: Path | str | None) -> Path | None:
    path = Path(name).expanduser()
    places = [path] + ([Path(search_dir) / path] if search_dir is not None else [])
    return next((place for place in places if place.exists()), None)
