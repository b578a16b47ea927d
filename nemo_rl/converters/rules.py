"""Weight rules: one line names a weight on both sides and says how to convert it.

The same rules load Hugging Face weights into a training rank, export them from it and
convert checkpoints on disk. Which rules a model has is its family's matter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.transforms import Identity, Shard, Transform

TE_NAMES = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight": (
        "self_attention.q_layernorm.weight"
    ),
    "self_attention.linear_kv_up_proj.layer_norm_weight": (
        "self_attention.kv_layernorm.weight"
    ),
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
"""Transformer Engine fuses norms into the linear that follows them."""
_RANK_NAMES = {
    **TE_NAMES,
    "self_attn_bda.weight": "self_attention.linear_proj.post_layernorm.weight",
    "mlp_bda.weight": "mlp.linear_fc2.post_layernorm.weight",
}


@dataclass(frozen=True)
class WeightRule:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    Attributes:
        megatron: parameter name with ``{layer}`` for the global layer number and
            ``{expert}`` for the expert's.
        hf: Hugging Face name to the names of its dimensions (``ModelSpec.sizes``), in
            the order ``transform.merge`` takes the tensors.
        shard: how tensor-parallel ranks divide the Megatron tensor.
        transform: exact conversion between the two sides.
        layers: of which layers: all, only the dense ones, or those with experts.
        keeps_dtype: never rounded; its dtype is its own, whatever the model's is.
    """

    megatron: str
    hf: Mapping[str, str]
    shard: Shard
    transform: Transform = Identity()  # noqa: RUF009 - stateless
    layers: Literal["all", "dense", "experts"] = "all"
    keeps_dtype: bool = False

    def at(self, layer: int, expert: int | None = None) -> WeightRule:
        """The rule with the numbers of layer and expert filled in."""
        numbers = {"layer": layer, "expert": expert}
        return replace(
            self,
            megatron=self.megatron.format(**numbers),
            hf={name.format(**numbers): dims for name, dims in self.hf.items()},
        )

    def megatron_shape(self, spec: ModelSpec) -> tuple[int, ...]:
        """Shape of the whole Megatron tensor, its vocabulary unpadded.

        Every transform puts the rows of its tensors together.
        """
        shapes = [spec.shape(dims) for dims in self.hf.values()]
        return (sum(rows for rows, *_ in shapes), *shapes[0][1:])

    def applies_to(self, spec: ModelSpec, layer: int) -> bool:
        """Whether a layer has this weight."""
        return self.layers == "all" or (
            spec.has_experts(layer) == (self.layers == "experts")
        )


def expand(rules: Iterable[WeightRule], spec: ModelSpec) -> dict[str, WeightRule]:
    """Rules with every layer and expert filled in, by Megatron parameter name.

    Weights that tying makes a second name (the output layer of a tied model) have no
    rule of their own.

    Raises:
        ValueError: two rules for one parameter.
    """
    found: dict[str, WeightRule] = {}
    for rule in rules:
        if spec.tied and rule.megatron == "output_layer.weight":
            continue
        for filled in _filled(rule, spec):
            if filled.megatron in found:
                raise ValueError(f"two rules for {filled.megatron}")
            found[filled.megatron] = filled
    return found


def _filled(rule: WeightRule, spec: ModelSpec) -> Iterator[WeightRule]:
    if "{layer}" not in rule.megatron:
        yield rule
        return
    experts: Iterable[int | None] = (None,)
    if "{expert}" in rule.megatron and spec.moe is not None:
        experts = range(spec.moe.experts)
    for layer in range(spec.num_layers):
        if rule.applies_to(spec, layer):
            yield from (rule.at(layer, expert) for expert in experts)


def matmul_parameters(rules: Mapping[str, WeightRule], spec: ModelSpec) -> int:
    """Weights that every token is multiplied with: no norms, no input embedding.

    Of routed experts, those of one token count.
    """
    total = 0.0
    for name, rule in rules.items():
        share = 1.0
        if spec.moe is not None and ".mlp.experts." in name:
            share = spec.moe.top_k / spec.moe.experts
        if name.startswith("embedding.") and not spec.tied:
            continue
        shapes = [spec.shape(dims) for dims in rule.hf.values()]
        total += share * sum(math.prod(s) for s in shapes if len(s) == 2)
    return round(total)


def canonical_name(
    parameter: str, layer_offset: int = 0, expert_offset: int = 0
) -> str:
    """A rank's parameter name as the rules spell it.

    Args:
        parameter: name on the rank, e.g. ``module.decoder.layers.0.mlp...``.
        layer_offset: layers on earlier pipeline stages.
        expert_offset: experts on earlier expert-parallel ranks.
    """
    name = re.sub(r"^(module\.)+", "", parameter)
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name
    rest = _RANK_NAMES.get(match[2], match[2])
    # Experts one by one, or Transformer Engine's grouped ones.
    one = re.fullmatch(r"mlp\.experts\.local_experts\.(\d+)\.(.+)", rest)
    grouped = re.fullmatch(r"mlp\.experts\.(linear_fc\d\.weight)(\d+)", rest)
    if one is not None:
        rest = f"mlp.experts.{int(one[1]) + expert_offset}.{one[2]}"
    elif grouped is not None:
        rest = f"mlp.experts.{int(grouped[2]) + expert_offset}.{grouped[1]}"
    return f"decoder.layers.{int(match[1]) + layer_offset}.{rest}"
