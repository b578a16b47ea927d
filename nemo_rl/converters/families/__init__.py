"""Model families: how a ``config.json`` is read, and which weights the model has.

A family is a module with ``ARCHITECTURES``, ``read`` and ``rules``;
docs/adding-a-model-family.md walks through one. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nemo_rl.converters.families import (
    deepseek,
    gemma,
    llama,
    mixtral,
    phi3,
    qwen2,
    qwen3,
    qwen_moe,
)
from nemo_rl.converters.hf_config import HfConfig
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import WeightRule, expand
from nemo_rl.utils.exceptions import ConfigurationError


class Family(Protocol):
    """What a family module has."""

    @property
    def ARCHITECTURES(self) -> tuple[str, ...]:  # noqa: N802 - a module's constant
        """Names in the field ``architectures`` of config.json."""
        ...

    def read(self, config: HfConfig, architecture: str) -> ModelSpec:
        """The model that a configuration describes; refuses what is not covered."""
        ...

    def rules(self, spec: ModelSpec) -> list[WeightRule]:
        """One rule per weight."""
        ...


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Make a family's architectures known; a later one replaces an earlier one."""
    for name in family.ARCHITECTURES:
        _FAMILIES[name] = family


for _module in (llama, qwen2, qwen3, qwen_moe, mixtral, deepseek, gemma, phi3):
    register_family(_module)


def model_spec(config: Mapping[str, Any], *, source: str = "config.json") -> ModelSpec:
    """Interpret a Hugging Face configuration.

    Args:
        config: parsed ``config.json`` (transformers 4 and 5 spellings).
        source: named in errors.

    Raises:
        ConfigurationError: an architecture or field that the rules do not cover.
    """
    hf = HfConfig(config, source)
    if hf.get("quantization_config"):
        raise ConfigurationError(
            f"{source} describes quantised weights; training needs a folder with "
            "float weights (load it with transformers, dequantise, save_pretrained)"
        )
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name in _FAMILIES:
            return _FAMILIES[name].read(hf, name)
    raise ConfigurationError(
        f"{source} declares architectures={names!r}, which the Megatron backend "
        f"does not know. Supported: {', '.join(_FAMILIES)}."
    )


def rules_for(spec: ModelSpec) -> dict[str, WeightRule]:
    """All rules of a model, by Megatron parameter name with global numbers."""
    return expand(_FAMILIES[spec.architecture].rules(spec), spec)
