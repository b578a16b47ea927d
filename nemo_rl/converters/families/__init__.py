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
from nemo_rl.converters.families.common import score
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


GENERATIVE, SCORED = "ForCausalLM", "ForSequenceClassification"
"""How transformers ends the names of a language model and of a reward model."""
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
        if not isinstance(name, str):
            continue
        model = name.replace(SCORED, GENERATIVE)
        if model in _FAMILIES:
            spec = _FAMILIES[model].read(hf, model)
            return _one_score(spec, hf) if name != model else spec
    raise ConfigurationError(
        f"{source} declares architectures={names!r}, which the Megatron backend "
        f"does not know. Supported: {', '.join(_FAMILIES)}."
    )


def _one_score(spec: ModelSpec, config: HfConfig) -> ModelSpec:
    labels = config.get("num_labels", len(config.get("id2label", {0: "", 1: ""})))
    if labels != 1:
        raise config.error(
            f"a classifier of {labels} labels; a reward model has one score "
            "(num_labels 1)"
        )
    return spec.with_score()


def score_config(spec: ModelSpec) -> dict[str, Any]:
    """Entries of config.json that make a language model's a reward model's."""
    return {
        "architectures": [spec.architecture.replace(GENERATIVE, SCORED)],
        "id2label": {"0": "score"},
        "label2id": {"score": 0},
        "tie_word_embeddings": False,
    }


def rules_for(spec: ModelSpec) -> dict[str, WeightRule]:
    """All rules of a model, by Megatron parameter name with global numbers."""
    rules = _FAMILIES[spec.architecture].rules(spec)
    if spec.scored:
        rules = [r for r in rules if r.megatron != "output_layer.weight"] + [score()]
    return expand(rules, spec)
