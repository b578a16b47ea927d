"""One model, two folders: every weight of a Hugging Face folder or Megatron checkpoint.

Both sides answer the same question, "the Hugging Face tensors of this weight", one
weight at a time. A side accounts for its files before it hands out anything: every
tensor belongs to one weight, and has the shape that the configuration implies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nemo_rl.converters.families import rules_for
from nemo_rl.converters.formats.dist_checkpoint import INDEX, DistCheckpoint
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import TE_NAMES, WeightRule
from nemo_rl.converters.transforms import PadVocabulary
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError


@dataclass(frozen=True)
class Weight:
    """A Megatron weight and where a distributed checkpoint keeps it.

    Layers of one kind are stacked in one tensor, and so are experts: the tensor of a
    weight is ``stacked[index]``, a part of the tensor ``key``.

    Attributes:
        rule: the Hugging Face tensors it is made of.
        key: name in the checkpoint.
        shape: unpadded, without the stacked dimensions.
        index: of layer and expert in the stack; empty where nothing is stacked.
        stack: sizes of the stacked dimensions, as long as ``index``.
    """

    rule: WeightRule
    key: str
    shape: tuple[int, ...]
    index: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()


def weights_of(spec: ModelSpec, *, stacked: bool | None = None) -> list[Weight]:
    """Every weight of a model, in the order of its layers.

    Args:
        spec: the model.
        stacked: layers are stacked, as Megatron does where they are all of one kind;
            None for what it does with this model.
    """
    stacked = not spec.mixed if stacked is None else stacked
    found: list[tuple[int, Weight]] = []
    for name, rule in rules_for(spec).items():
        match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
        layer = -1 if match is None else int(match[1])
        place = (name, (), ())
        if match is not None:
            place = _place(match[2], layer, spec, stacked=stacked)
        shape = rule.megatron_shape(spec)
        found.append((layer, Weight(rule, place[0], shape, *place[1:])))
    return [weight for _, weight in sorted(found, key=lambda item: item[0])]


def _place(
    name: str, layer: int, spec: ModelSpec, *, stacked: bool
) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Key, index and stack of a layer's weight."""
    name = _fused_norms(spec, layer).get(name, name)
    index, stack = (layer,), (spec.num_layers,)
    prefix = "decoder.layers."
    if not stacked:
        index, stack, prefix = (), (), f"decoder.layers.{layer}."
    expert = re.fullmatch(r"mlp\.experts\.(\d+)\.(.+)", name)
    if expert is not None and spec.moe is not None:
        name = f"mlp.experts.experts.{expert[2]}"
        index, stack = (*index, int(expert[1])), (*stack, spec.moe.experts)
    return prefix + name, index, stack


def _fused_norms(spec: ModelSpec, layer: int) -> dict[str, str]:
    """Norms of a layer that Transformer Engine keeps with the linear after them."""
    left_out = set()
    if spec.has_experts(layer):
        left_out.add("pre_mlp_layernorm.weight")
    if spec.mla is not None:
        left_out.add("input_layernorm.weight")
    else:
        left_out |= {f"self_attention.{x}_layernorm.weight" for x in ("q", "kv")}
    return {ours: te for te, ours in TE_NAMES.items() if ours not in left_out}


def extra_states(weights: Iterable[Weight]) -> list[str]:
    """Keys of the empty objects that Megatron keeps beside the weight of a linear."""
    found = []
    for weight in weights:
        linear = weight.key.removesuffix(".weight")
        if linear.split(".")[-1].startswith("linear_") and linear != weight.key:
            index = ".".join(map(str, weight.index or (0,)))
            stack = ".".join(map(str, weight.stack or (1,)))
            found.append(f"{linear}._extra_state/shard_{index}_{stack}")
    return found


class Side(Protocol):
    """A folder of weights of either kind."""

    folder: Path

    def parts(self, weight: Weight) -> list[Tensor]:
        """The Hugging Face tensors of one weight, read now."""
        ...

    def dtypes(self, weight: Weight) -> list[torch.dtype]:
        """The dtypes of ``parts``; nothing is read."""
        ...

    def release(self, weight: Weight) -> None:
        """Give back the memory of ``parts``, which are views of mapped files."""
        ...


class HfSide:
    """Weights of a Hugging Face folder.

    Raises:
        ConfigurationError: missing, surplus or misshapen tensors.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder, self.spec = folder, spec
        self.weights = HfWeights(folder)
        check_tensors(self.weights, spec)

    def parts(self, weight: Weight) -> list[Tensor]:
        """See ``Side``."""
        return [self.weights.tensor(name) for name in weight.rule.hf]

    def dtypes(self, weight: Weight) -> list[torch.dtype]:
        """See ``Side``."""
        return [self.weights.dtype(name) for name in weight.rule.hf]

    def release(self, weight: Weight) -> None:
        """See ``Side``."""
        for name in weight.rule.hf:
            self.weights.release(name)


class MegatronSide:
    """Weights of a distributed checkpoint; its optimizer is left alone.

    Raises:
        CheckpointError: missing, surplus or misshapen tensors.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder, self.spec = find_weights(folder), spec
        self.checkpoint = DistCheckpoint(self.folder)
        numbered = re.compile(r"decoder\.layers\.\d+\.")
        stacked = not any(numbered.match(key) for key in self.checkpoint.tensors)
        weights = weights_of(spec, stacked=stacked)
        self._places = {weight.rule.megatron: weight for weight in weights}
        self._account(weights)

    def parts(self, weight: Weight) -> list[Tensor]:
        """See ``Side``."""
        place = self._places[weight.rule.megatron]
        full = self.checkpoint.read(place.key, place.index)
        return weight.rule.transform.split(full, self.spec)

    def dtypes(self, weight: Weight) -> list[torch.dtype]:
        """See ``Side``."""
        key = self._places[weight.rule.megatron].key
        return [self.checkpoint.tensors[key].dtype] * len(weight.rule.hf)

    def release(self, weight: Weight) -> None:
        """See ``Side``."""
        place = self._places[weight.rule.megatron]
        self.checkpoint.release(place.key, place.index)

    def _account(self, weights: list[Weight]) -> None:
        expected = {w.key for w in weights}
        found = {k for k in self.checkpoint.tensors if not k.startswith("optimizer.")}
        if self.spec.tied:
            found.discard("output_layer.weight")
        if any(key.endswith("embed_tokens.weight") for key in found):
            raise CheckpointError(
                f"{self.folder} is a plain torch.distributed.checkpoint folder with "
                "Hugging Face names, not Megatron's. Use dcp-to-hf."
            )
        if expected != found:
            raise CheckpointError(
                f"{self.folder}: the tensors do not match config.json. Missing: "
                f"{some(expected - found)}. Unexpected: {some(found - expected)}."
            )
        wrong = set()
        for weight in weights:
            shape = self.checkpoint.tensors[weight.key].shape
            expects = (*weight.stack, *weight.shape)
            if not _fits(shape, expects, weight):
                wrong.add(f"{weight.key} is {list(shape)}, expected {list(expects)}")
        if wrong:
            raise CheckpointError(
                f"{self.folder}: tensors do not have the shape that config.json "
                f"implies: {some(wrong)}."
            )


def _fits(found: tuple[int, ...], expected: tuple[int, ...], weight: Weight) -> bool:
    if isinstance(weight.rule.transform, PadVocabulary):
        return found[1:] == expected[1:] and found[0] >= expected[0]
    return found == expected


def find_weights(folder: Path) -> Path:
    """The folder of the distributed checkpoint in or below ``folder``.

    Accepts it itself, and a training checkpoint (``step_000010``) around it.

    Raises:
        CheckpointError: there is none.
    """
    for place in (folder, folder / "weights", folder / "policy" / "weights"):
        if (place / INDEX).exists():
            return place
    raise CheckpointError(
        f"{folder} holds no Megatron checkpoint: no {INDEX} in it, in weights or in "
        "policy/weights."
    )


def is_megatron(folder: Path) -> bool:
    """Whether a folder is, or holds, a distributed checkpoint."""
    try:
        find_weights(folder)
    except CheckpointError:
        return False
    return True


def check_tensors(
    weights: HfWeights, spec: ModelSpec, *, without_score: bool = False
) -> None:
    """Compare names and shapes of a Hugging Face folder with its configuration.

    Args:
        weights: of the folder.
        spec: the model.
        without_score: a reward model that begins with a language model's weights: it
            has no score yet, and the output layer is left alone.

    Raises:
        ConfigurationError: missing, surplus or misshapen tensors, all listed.
    """
    expected = {
        name: spec.shape(dims)
        for rule in rules_for(spec).values()
        for name, dims in rule.hf.items()
    }
    if without_score:
        del expected["score.weight"]
    found = weights.names()
    derived = "rotary_emb.inv_freq"
    surplus = {n for n in found - set(expected) if not n.endswith(derived)}
    if spec.tied or without_score:
        surplus.discard("lm_head.weight")
    missing = set(expected) - found
    if missing or surplus:
        raise ConfigurationError(
            f"{weights.folder}: the tensors do not match config.json "
            f"(a {spec.architecture} of {spec.num_layers} layers). Missing: "
            f"{some(missing)}. Unexpected: {some(surplus)}."
        )
    wrong = {
        f"{name} is {list(weights.shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if weights.shapes[name] != shape
    }
    if wrong:
        raise ConfigurationError(
            f"{weights.folder}: tensors do not have the shape that config.json "
            f"implies: {some(wrong)}. Use the config.json that the weights were saved "
            "with."
        )


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few of a set of names, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return f"{', '.join(ordered[:limit])}{more}" if ordered else "none"
