"""Weight rules: one line names a weight on both sides and says how to convert it.

The same rules load Hugging Face weights into a training rank, export them from it and
convert checkpoints on disk. A family is a module with a ``RULES`` list; add it to
``_family_rules`` and to ``model_spec.FAMILIES``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.transforms import Identity, Shard, Transform
from nemo_rl.utils.exceptions import ConfigurationError

TE_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Transformer Engine fuses two norms into the linear that follows them."""


@dataclass(frozen=True)
class WeightRule:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    Attributes:
        megatron: parameter name with ``{layer}`` for the global layer number.
        hf: Hugging Face names, in the order ``transform.merge`` takes them.
        shard: how tensor-parallel ranks divide the Megatron tensor.
        transform: exact conversion between the two sides.
    """

    megatron: str
    hf: tuple[str, ...]
    shard: Shard
    transform: Transform = Identity()  # noqa: RUF009 - stateless

    def at(self, layer: int | None) -> WeightRule:
        """The rule with the layer number filled in."""
        if layer is None:
            return self
        return WeightRule(
            self.megatron.format(layer=layer),
            tuple(name.format(layer=layer) for name in self.hf),
            self.shard,
            self.transform,
        )


def rules_for(spec: ModelSpec) -> dict[str, WeightRule]:
    """All rules of a model, by Megatron parameter name with global layer numbers.

    Weights that tying makes a second name (the output layer of a tied model) have no
    rule of their own.
    """
    rules: dict[str, WeightRule] = {}
    for rule in _family_rules(spec):
        if spec.tied and rule.megatron == "output_layer.weight":
            continue
        layers: Iterable[int | None] = (
            range(spec.num_layers) if "{layer}" in rule.megatron else (None,)
        )
        for layer in layers:
            filled = rule.at(layer)
            rules[filled.megatron] = filled
    return rules


def _family_rules(spec: ModelSpec) -> list[WeightRule]:
    from nemo_rl.converters import llama, qwen2, qwen3

    families = {"llama": llama.RULES, "qwen2": qwen2.RULES, "qwen3": qwen3.RULES}
    if spec.family not in families:
        raise ConfigurationError(
            f"no weight rules for model family {spec.family!r}; "
            f"known: {', '.join(families)}"
        )
    return families[spec.family]


def canonical_name(parameter: str, layer_offset: int = 0) -> str:
    """A rank's parameter name as the rules spell it.

    Args:
        parameter: name on the rank, e.g. ``module.decoder.layers.0.mlp...``.
        layer_offset: layers on earlier pipeline stages.
    """
    name = re.sub(r"^(module\.)+", "", parameter)
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    rest = TE_NAMES.get(match[2], match[2])
    return f"decoder.layers.{int(match[1]) + layer_offset}.{rest}"
