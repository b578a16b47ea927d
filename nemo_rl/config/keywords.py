"""Keywords -> recipe: what `nemo_rl.train` and `from_pretrained` are called with.

Knows the names of keys, no algorithm, and of the machine only whether it has GPUs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from nemo_rl.config.base import merge, plain
from nemo_rl.config.loop import OpenLoopConfig
from nemo_rl.config.master import MasterConfig
from nemo_rl.config.messages import section_in
from nemo_rl.utils.env import visible_gpus
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=MasterConfig)

KEYWORDS = {
    "max_steps": "{algorithm}.max_num_steps",
    "max_epochs": "{algorithm}.max_num_epochs",
    "learning_rate": "policy.learning_rate",
    "max_sequence_length": "policy.max_total_sequence_length",
    "precision": "policy.precision",
    "seed": "{algorithm}.seed",
    "batch_size": "{algorithm}.num_prompts_per_step",
    "micro_batch_size": "policy.train_micro_batch_size",
    "output_dir": "checkpointing.checkpoint_dir",
    "gpus_per_node": "cluster.gpus_per_node",
    "num_nodes": "cluster.num_nodes",
    "tensor_parallel_size": "policy.megatron_cfg.tensor_model_parallel_size",
    "pipeline_parallel_size": "policy.megatron_cfg.pipeline_model_parallel_size",
}
"""Short keyword -> path in the recipe."""


def build_config(
    cls: type[Config], model: str, algorithm: str, **kwargs: Any
) -> Config:
    """Build a validated recipe from keywords; arguments as `build_mapping`."""
    return cls.from_mapping(build_mapping(cls, model, algorithm, **kwargs))


def build_mapping(
    cls: type[MasterConfig], model: str, algorithm: str, **kwargs: Any
) -> dict[str, Any]:
    """Build a recipe from keywords, as nested dicts, not yet validated.

    Args:
        cls: the class of the recipe.
        model: folder, hub name or packaged model.
        algorithm: name of the algorithm and of its section.
        **kwargs: names of `KEYWORDS`, whole sections (`policy={...}`), or any key of
            the recipe whose name occurs once (`num_generations_per_prompt=8`). With
            an `OpenMasterConfig`, any other name is a key of the algorithm's section.

    Returns:
        The keywords in their places over defaults that fit this machine.

    Raises:
        ConfigurationError: a keyword is no key, or could be one of several.
    """
    given: dict[str, Any] = {"policy": {"model_name": model}}
    # Last, because which key it is depends on the backend that the others choose.
    for name in sorted(kwargs, key="tensor_parallel_size".__eq__):
        value = plain(kwargs[name])
        if name in cls.model_fields:
            change = {name: value}
        elif name == "tensor_parallel_size" and _chooses_dtensor(given["policy"]):
            change = _nested("policy.dtensor_cfg.tensor_parallel_size", value)
        else:
            change = _nested(_path_of(name, cls, algorithm), value)
        given = merge(given, change)
    values = merge(machine_defaults(given.get("cluster") or {}), given)
    values.setdefault("algorithm", algorithm)
    values.setdefault(algorithm, {})
    return values


def _chooses_dtensor(policy: Mapping[str, Any]) -> bool:
    section = policy.get("dtensor_cfg") or {}
    return bool(section.get("enabled")) or policy.get("training_backend") == "dtensor"


def machine_defaults(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults that fit this machine, where `cluster` does not choose one.

    Without a GPU that is one CPU worker in float32; with GPUs, all that are here.
    """
    if {"gpus_per_node", "num_nodes"} & set(cluster):
        return {}
    gpus = 0 if cluster.get("cpu_workers_per_node") else count_gpus()
    if gpus:
        return {"cluster": {"gpus_per_node": gpus}}
    workers = cluster.get("cpu_workers_per_node") or 1
    logger.info("Training on CPUs: %s worker(s), float32.", workers)
    return {
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": workers},
        "policy": {"precision": "float32"},
    }


def count_gpus(devices: Path = Path("/dev")) -> int:
    """Count NVIDIA GPUs by their device files; no torch, no driver call.

    CUDA_VISIBLE_DEVICES, where it is set, bounds them.
    """
    present = sum(
        entry.name.removeprefix("nvidia").isdigit()
        for entry in devices.glob("nvidia[0-9]*")
    )
    allowed = visible_gpus()
    return present if allowed is None else min(present, allowed)


def _path_of(name: str, cls: type[MasterConfig], algorithm: str) -> str:
    paths = _leaves(cls)
    own_keys = cls.model_config.get("extra") == "allow"
    if own_keys:
        for leaf in OpenLoopConfig.model_fields:
            paths.setdefault(leaf, []).append(f"{algorithm}.{leaf}")
    short = KEYWORDS.get(name)
    if short is not None:
        path = short.format(algorithm=algorithm)
        if path in paths.get(path.rpartition(".")[2], ()):
            return path
    found = paths.get(name, [f"{algorithm}.{name}"] if own_keys else [])
    if not found:
        raise ConfigurationError(
            f"{name} is not a keyword of {algorithm!r}."
            f"{did_you_mean(name, [*KEYWORDS, *paths, *cls.model_fields])}"
        )
    # Of several keys, that of the algorithm's own section, or of these is meant.
    for section in (algorithm, "policy", "data", "cluster"):
        path = f"{section}.{name}"
        if path in found:
            return path
    if len(found) == 1:
        return found[0]
    raise ConfigurationError(
        f"{name} could be any of {', '.join(found)}: pass its section as a dict, for "
        f"example {found[0].partition('.')[0]}={{...}}."
    )


def _leaves(cls: type[BaseModel], prefix: str = "") -> dict[str, list[str]]:
    """Return key name -> every dotted path that ends in it."""
    paths: dict[str, list[str]] = {}
    for name, field in cls.model_fields.items():
        section = section_in(field.annotation)
        path = f"{prefix}{name}"
        if section is None or prefix:
            paths.setdefault(name, []).append(path)
        if section is not None:
            for leaf, found in _leaves(section, f"{path}.").items():
                paths.setdefault(leaf, []).extend(found)
    return paths


def _nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value
