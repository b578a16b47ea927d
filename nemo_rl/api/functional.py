"""Algorithm names, keywords and recipe files -> a config, and a config -> a trainer.

Torch-free: it names trainers by their import path and imports one only to build it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.config import keywords
from nemo_rl.config.base import BaseConfig
from nemo_rl.config.loading import load_recipe_mapping
from nemo_rl.config.master import MasterConfig
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object
from nemo_rl.utils.suggest import did_you_mean


@dataclass(frozen=True)
class AlgorithmEntry:
    """Where an algorithm's classes are, as "module:class"."""

    config: str
    trainer: str


_ALGORITHM_REGISTRY: dict[str, AlgorithmEntry | type] = {
    "grpo": AlgorithmEntry(
        config="nemo_rl.algorithms.grpo.config:GRPOMasterConfig",
        trainer="nemo_rl.algorithms.grpo.trainer:GRPOTrainer",
    ),
    "sft": AlgorithmEntry(
        config="nemo_rl.algorithms.sft.config:SFTMasterConfig",
        trainer="nemo_rl.algorithms.sft.trainer:SFTTrainer",
    ),
    "dpo": AlgorithmEntry(
        config="nemo_rl.algorithms.dpo.config:DPOMasterConfig",
        trainer="nemo_rl.algorithms.dpo.trainer:DPOTrainer",
    ),
    "rm": AlgorithmEntry(
        config="nemo_rl.algorithms.rm.config:RMMasterConfig",
        trainer="nemo_rl.algorithms.rm.trainer:RMTrainer",
    ),
    "distillation": AlgorithmEntry(
        config="nemo_rl.algorithms.distillation.config:DistillationMasterConfig",
        trainer="nemo_rl.algorithms.distillation.trainer:DistillationTrainer",
    ),
    "eval": AlgorithmEntry(
        config="nemo_rl.evals.config:EvalMasterConfig",
        trainer="nemo_rl.evals.recipe:EvalRun",
    ),
}
"""Name -> entry, or a trainer class of one's own."""


def _entry(algorithm: str) -> AlgorithmEntry | type:
    if algorithm not in _ALGORITHM_REGISTRY:
        names = sorted(_ALGORITHM_REGISTRY)
        raise ConfigurationError(
            f"algorithm={algorithm!r} is not one of {', '.join(names)}."
            f"{did_you_mean(algorithm, names)}"
        )
    return _ALGORITHM_REGISTRY[algorithm]


def is_builtin(algorithm: str) -> bool:
    """Return whether an algorithm is the library's, not a registered trainer class."""
    return isinstance(_entry(algorithm), AlgorithmEntry)


def config_class(algorithm: str) -> type[MasterConfig]:
    """Return the class of an algorithm's whole recipe.

    Raises:
        ConfigurationError: no such algorithm, or a trainer registered without one.
    """
    entry = _entry(algorithm)
    if isinstance(entry, AlgorithmEntry):
        return import_object(entry.config)
    found = getattr(entry, "config_class", None)
    if found is None:
        raise ConfigurationError(
            f"{entry.__name__}, registered as {algorithm!r}, has no config_class: set "
            "it to the class of its configuration."
        )
    return found


def trainer_class(algorithm: str) -> type:
    """Return an algorithm's trainer class; imports it, and with it torch.

    Raises:
        ConfigurationError: no such algorithm.
    """
    entry = _entry(algorithm)
    return import_object(entry.trainer) if isinstance(entry, AlgorithmEntry) else entry


def algorithm_of(mapping: Mapping[str, Any] | BaseConfig) -> str:
    """Return the algorithm of a recipe: its `algorithm` key or its one section.

    Raises:
        ConfigurationError: none or several of the sections are there.
    """
    if mapping.get("algorithm"):
        return str(mapping.get("algorithm"))
    present = [name for name in _ALGORITHM_REGISTRY if name in mapping]
    if len(present) == 1:
        return present[0]
    names = ", ".join(sorted(_ALGORITHM_REGISTRY))
    found = f"several: {', '.join(present)}" if present else "none"
    raise ConfigurationError(
        f"which algorithm? Expected the key `algorithm`, or one of the sections "
        f"{names}; found {found}."
    )


def to_config(mapping: Mapping[str, Any] | BaseConfig, algorithm: str) -> MasterConfig:
    """Validate a mapping as the recipe of an algorithm; a config passes as it is."""
    cls = config_class(algorithm)
    return mapping if isinstance(mapping, cls) else cls.from_mapping(mapping)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> MasterConfig:
    """Read and validate a recipe file.

    Args:
        path: YAML file; its folder becomes the config's `recipe_dir`.
        overrides: "section.key=value" texts, applied in order.

    Raises:
        ConfigurationError: the file, an override or a value is wrong.
    """
    mapping = load_recipe_mapping(path, overrides)
    try:
        config = to_config(mapping, algorithm_of(mapping))
    except ConfigurationError as error:
        raise type(error)(f"{path}: {error}") from error
    config.recipe_dir = Path(path).resolve().parent
    return config


def create_trainer(config: MasterConfig | Mapping[str, Any]) -> Any:
    """Build the trainer of a config or mapping; imports torch.

    Raises:
        ConfigurationError: as `algorithm_of`, `trainer_class` and the config's own.
    """
    algorithm = algorithm_of(config)
    return trainer_class(algorithm)(config)


def build_config(model: str, algorithm: str = "grpo", **kwargs: Any) -> MasterConfig:
    """Build the config of an algorithm from keywords.

    Args:
        model: folder, hub name or packaged model.
        algorithm: registered name.
        **kwargs: as for `config.keywords.build_mapping`.

    Raises:
        ConfigurationError: a keyword is no key, or one of several; or a value is
            wrong.
    """
    return keywords.build_config(config_class(algorithm), model, algorithm, **kwargs)
