"""A PEFT adapter folder: what it changes in its base model, or why that is refused.

Format: ``adapter_config.json`` and ``adapter_model.safetensors`` as the peft library
writes them (https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.converters.bridge import some
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.utils.exceptions import ConfigurationError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUPPORTED = (
    "Supported: peft_type LORA with bias none, of linear layers and embeddings, with "
    "r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, fan_in_fan_out and "
    "modules_to_save. Merge others with peft's merge_and_unload."
)
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "bias",
    "init_lora_weights",
    "ensure_weight_tying",
}
# These chose what was trained and how; the tensors of the file show the outcome.
_WITHOUT_EFFECT = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
}
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRank:
    """A product of two adapter tensors that is added to a weight.

    Attributes:
        a: name of the tensor ``[rank, in]``.
        b: name of the tensor ``[out, rank]``.
        scale: factor of ``b @ a``.
        transposed: the weight is ``[in, out]``.
    """

    a: str
    b: str
    scale: float
    transposed: bool


@dataclass
class Change:
    """What an adapter does to one weight of the base.

    Attributes:
        saved: name of the adapter tensor that replaces it, None where none does.
        low_rank: what is added to it.
    """

    saved: str | None = None
    low_rank: LowRank | None = None


class AdapterWeights(HfWeights):
    """The tensors of an adapter.

    Raises:
        ConfigurationError: no safetensors file.
    """

    def _files(self) -> dict[Path, set[str]]:
        path = self.folder / WEIGHTS
        if not path.exists():
            raise ConfigurationError(
                f"{self.folder} has no {WEIGHTS}. Load the adapter with peft and "
                "save_pretrained() it, which writes safetensors."
            )
        return {path: set()}


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / CONFIG).exists()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read ``adapter_config.json`` and refuse what cannot be merged.

    Raises:
        ConfigurationError: it is missing or damaged, or a field changes the model in a
            way that is not covered; names the field.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{folder} is not an adapter folder: it has no {CONFIG}. Expected what "
            "peft's save_pretrained() writes."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} holds {type(config).__name__}, not an object")
    expected = {"peft_type": "LORA", "bias": "none"}
    for field, value in expected.items():
        if config.get(field, value) != value:
            raise _refusal(path, field, config[field])
    init = config.get("init_lora_weights", True)
    plain = any(init is p or (isinstance(p, str) and init == p) for p in _PLAIN_INIT)
    if not plain:
        raise ConfigurationError(
            f"{path}: init_lora_weights={init!r} changed the base as well, so the "
            "adapter does not fit the original one. Save it again with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    for field in sorted(set(config) - _READ - _WITHOUT_EFFECT):
        if config[field]:
            raise _refusal(path, field, config[field])
    return config


def _refusal(path: Path, field: str, value: Any) -> ConfigurationError:
    return ConfigurationError(f"{path}: {field}={value!r} is not covered. {_SUPPORTED}")


def changes_of(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str = WEIGHTS,
) -> dict[str, Change]:
    """What the tensors of an adapter do, by name of the base's weight.

    Args:
        config: what ``read_adapter_config`` returns.
        shapes: name of every adapter tensor to its shape.
        source: named in errors.

    Raises:
        ConfigurationError: a tensor of another kind, one without its partner, or a rank
            that is not the configuration's; all are listed.
    """
    if not shapes:
        raise ConfigurationError(
            f"{source} holds no tensors: there is nothing to merge"
        )
    changes: dict[str, Change] = {}
    pairs: dict[tuple[str, bool], dict[str, str]] = {}
    unknown: set[str] = set()
    for key in shapes:
        name = key.removeprefix(_PREFIX)
        low = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?", name)
        if name == key or (low is None and "lora_" in name):
            unknown.add(key)
        elif low is not None and bool(low[2]) != bool(low[4]):
            pairs.setdefault((low[1], bool(low[2])), {})[low[3]] = key
        elif low is not None:
            unknown.add(key)
        else:
            weight = re.sub(r"\.base_layer\.(weight|bias)$", r".\1", name)
            changes[weight] = Change(saved=key)
    alone = {key for p in pairs.values() if len(p) == 1 for key in p.values()}
    if unknown or alone:
        raise ConfigurationError(
            f"{source}: tensors that are not covered: {some(unknown)}. Without their "
            f"lora_A or lora_B: {some(alone)}. {_SUPPORTED}"
        )
    wrong: set[str] = set()
    for (module, embedding), pair in pairs.items():
        rank, alpha = _of_module(config, module, source)
        a, b = shapes[pair["A"]], shapes[pair["B"]]
        if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
            wrong.add(f"{module}: A {list(a)} and B {list(b)} for rank {rank}")
        root = math.sqrt(rank) if config.get("use_rslora") else rank
        transposed = embedding or bool(config.get("fan_in_fan_out"))
        low_rank = LowRank(pair["A"], pair["B"], alpha / root, transposed)
        changes.setdefault(f"{module}.weight", Change()).low_rank = low_rank
    if wrong:
        raise ConfigurationError(
            f"{source}: tensors do not have the rank of {CONFIG}, expected A [rank, "
            f"in] and B [out, rank]: {some(wrong)}."
        )
    return changes


def _of_module(
    config: Mapping[str, Any], module: str, source: str
) -> tuple[float, float]:
    """Rank and alpha of a module: the first pattern that fits, or the common one."""
    found = []
    for common, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        value = config.get(common)
        for pattern, other in (config.get(patterns) or {}).items():
            try:
                fits = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise ConfigurationError(
                    f"{source}: {patterns} has {pattern!r}, no pattern: {error}"
                ) from None
            if fits:
                value = other
                break
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise ConfigurationError(
                f"{source}: {common}={value!r} for {module}, expected a positive number"
            )
        found.append(value)
    return found[0], found[1]
