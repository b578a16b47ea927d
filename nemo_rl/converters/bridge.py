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

from nemo_rl.converters.dist_checkpoint import INDEX, DistCheckpoint
from nemo_rl.converters.hf import HfWeights
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import TE_NAMES, WeightRule, rules_for
from nemo_rl.converters.transforms import PadVocabulary
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError

_CHECKPOINT_NAMES = {ours: te for te, ours in TE_NAMES.items()}


@dataclass(frozen=True)
class Weight:
    """A Megatron weight and where a distributed checkpoint keeps it.

    Attributes:
        rule: the Hugging Face tensors it is made of.
        key: name in the checkpoint, without a layer number.
        layer: its layer, None for a weight outside the layers.
        shape: unpadded, without the dimension of layers.
    """

    rule: WeightRule
    key: str
    layer: int | None
    shape: tuple[int, ...]


def weights_of(spec: ModelSpec) -> list[Weight]:
    """Every weight of a model, in the order of its layers."""
    found = []
    for name, rule in rules_for(spec).items():
        match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
        key, layer = name, None
        if match is not None:
            layer = int(match[1])
            key = f"decoder.layers.{_CHECKPOINT_NAMES.get(match[2], match[2])}"
        parts = [torch.empty(spec.hf_shape(n), device="meta") for n in rule.hf]
        shape = tuple(rule.transform.merge(parts, spec).shape)
        found.append(Weight(rule, key, layer, shape))
    return sorted(found, key=lambda w: -1 if w.layer is None else w.layer)


class Side(Protocol):
    """A folder of weights of either kind."""

    folder: Path
    dtypes: set[torch.dtype]

    def parts(self, weight: Weight) -> list[Tensor]:
        """The Hugging Face tensors of one weight, read now."""
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
        names = [name for weight in weights_of(spec) for name in weight.rule.hf]
        self.dtypes = {self.weights.dtype(name) for name in names}

    def parts(self, weight: Weight) -> list[Tensor]:
        """See ``Side``."""
        return [self.weights.tensor(name) for name in weight.rule.hf]


class MegatronSide:
    """Weights of a distributed checkpoint; its optimizer is left alone.

    Raises:
        CheckpointError: missing, surplus or misshapen tensors.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder, self.spec = find_weights(folder), spec
        self.checkpoint = DistCheckpoint(self.folder)
        weights = weights_of(spec)
        self._account(weights)
        self.dtypes = {self.checkpoint.tensors[w.key].dtype for w in weights}

    def parts(self, weight: Weight) -> list[Tensor]:
        """See ``Side``."""
        full = self.checkpoint.read(weight.key, weight.layer)
        return weight.rule.transform.split(full, self.spec)

    def _account(self, weights: list[Weight]) -> None:
        expected = {w.key for w in weights}
        found = {k for k in self.checkpoint.tensors if not k.startswith("optimizer.")}
        if self.spec.tied:
            found.discard("output_layer.weight")
        if expected != found:
            raise CheckpointError(
                f"{self.folder}: the tensors do not match config.json. Missing: "
                f"{some(expected - found)}. Unexpected: {some(found - expected)}."
            )
        wrong = set()
        for weight in weights:
            shape = self.checkpoint.tensors[weight.key].shape
            layers = () if weight.layer is None else (self.spec.num_layers,)
            if not _fits(shape, (*layers, *weight.shape), weight):
                expects = list((*layers, *weight.shape))
                wrong.add(f"{weight.key} is {list(shape)}, expected {expects}")
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


def check_tensors(weights: HfWeights, spec: ModelSpec) -> None:
    """Compare names and shapes of a Hugging Face folder with its configuration.

    Raises:
        ConfigurationError: missing, surplus or misshapen tensors, all listed.
    """
    expected = {name for rule in rules_for(spec).values() for name in rule.hf}
    found = weights.names()
    surplus = {n for n in found - expected if not n.endswith("rotary_emb.inv_freq")}
    if spec.tied:
        surplus.discard("lm_head.weight")
    missing = expected - found
    if missing or surplus:
        raise ConfigurationError(
            f"{weights.folder}: the tensors do not match config.json (a {spec.family} "
            f"of {spec.num_layers} layers). Missing: {some(missing)}. "
            f"Unexpected: {some(surplus)}."
        )
    wrong = {
        f"{name} is {list(weights.shapes[name])}, expected {list(spec.hf_shape(name))}"
        for name in expected
        if weights.shapes[name] != spec.hf_shape(name)
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
