"""Folders and names of the Hugging Face hub as rows, through the datasets library.

Knows no field of a row and no dataset of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nemo_rl.data.datasets.files import READERS, open_file
from nemo_rl.data.datasets.views import NamedRows
from nemo_rl.utils.exceptions import ConfigurationError, DataError
from nemo_rl.utils.imports import require
from nemo_rl.utils.suggest import did_you_mean


def open_folder(path: Path, split: str | None = None, **kwargs: Any) -> Any:
    """Return one split of a folder on this machine.

    Args:
        path: A folder written by ``save_to_disk``, or one laid out as on the hub:
            data files whose names tell their split (``data/train-*.parquet``,
            ``test.jsonl``), or a README.md that lists them.
        split: Which; "train" when None.
        **kwargs: Arguments of ``datasets.load_dataset``, such as ``name``.

    Raises:
        DataError: It holds no data, has no such split, or a file cannot be read.
    """
    if is_saved(path):
        return _saved(path, split)
    datasets = require("datasets")
    try:
        return _load(str(path), split, **kwargs)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path} holds no data: expected .parquet, .jsonl, .csv or .arrow files, "
            "or what save_to_disk() of the datasets library writes."
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # The library does not say in which file; reading each on its own does.
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in READERS:
                open_file(file)
        raise DataError(f"{path} cannot be read: {_reason(error)}") from error


def is_saved(path: Path) -> bool:
    """Return whether ``save_to_disk`` of the datasets library wrote a folder."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_hub(
    hub: str,
    split: str | None = None,
    *,
    instead: str = "",
    setting: str = "data.dataset_name",
    **kwargs: Any,
) -> Any:
    """Return one split of a dataset on the hub, or of its copy in the cache.

    Args:
        hub: "owner/name".
        split: Which; "train" when None.
        instead: What else the name could have been, for the message.
        setting: Key that takes the folder of a copy, for the message.
        **kwargs: Arguments of ``datasets.load_dataset``, such as ``name``.

    Raises:
        ConfigurationError: There is none, or the hub cannot be reached.
        DataError: It has no such split, or cannot be read.
    """
    datasets = require("datasets")
    try:
        return _load(hub, split, **kwargs)
    except DataError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"No dataset {hub!r}: {instead}not in the cache, and the Hugging Face hub "
            f"gave none ({_reason(error)}). {how_to_copy(hub, setting)}"
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"The dataset {hub!r} cannot be read: {_reason(error)}"
        ) from error


def how_to_copy(name: str, setting: str) -> str:
    """Say how to get a copy of a dataset onto a machine without network."""
    leaf = name.rpartition("/")[2]
    return (
        f"Where there is a network: hf download {name} --repo-type dataset --local-dir "
        f"{leaf}; then set {setting} to that folder."
    )


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


def _saved(path: Path, split: str | None) -> NamedRows:
    datasets = require("datasets")
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} is not what save_to_disk() of the datasets library writes: "
            f"{_reason(error)}"
        ) from error
    return NamedRows(pick_split(found, split, str(path)), str(path))


def _load(place: str, split: str | None, **kwargs: Any) -> NamedRows:
    wanted = split or "train"
    try:
        found = require("datasets").load_dataset(place, split=wanted, **kwargs)
    except ValueError as error:
        unknown = re.search(r"Unknown split .* one of (\[.*\])", str(error))
        if unknown is None:
            raise
        splits = re.findall(r"'([^']*)'", unknown.group(1))
        raise DataError(
            f"{place} has no split {wanted!r}; it has {', '.join(splits)}."
            f"{did_you_mean(wanted, splits)}"
        ) from error
    return NamedRows(found, place)


def _reason(error: BaseException) -> str:
    """Return the first line of the error that began it all."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[:2])
