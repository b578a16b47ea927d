"""Which rank of a TP x PP x EP layout writes which piece of a Megatron weight.

Arithmetic on shapes; nothing is read. Ranks are numbered as Megatron numbers them:
tensor-parallel ranks vary fastest, pipeline stages slowest, and the ranks of a stage
share its experts, each of which is on one rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from nemo_rl.config.parallel import divisors, nearest
from nemo_rl.converters.bridge import Weight
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.transforms import PadVocabulary
from nemo_rl.utils.exceptions import ConfigurationError


@dataclass(frozen=True)
class Layout:
    """Sizes of tensor, pipeline and expert parallelism.

    Attributes:
        tp: ranks that divide a weight.
        pp: stages that divide the layers.
        ep: ranks of a stage that divide the experts.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1

    @property
    def stage(self) -> int:
        """Ranks of a pipeline stage: the fewest that both ``tp`` and ``ep`` divide."""
        return math.lcm(self.tp, self.ep)

    @property
    def ranks(self) -> int:
        """Ranks altogether."""
        return self.stage * self.pp


@dataclass(frozen=True)
class Piece:
    """A part of a weight, and the rank that writes it.

    Attributes:
        rank: number of the rank.
        offsets: where it lies in the weight, without the stacked dimensions.
        sizes: of it.
    """

    rank: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def check_layout(spec: ModelSpec, layout: Layout) -> None:
    """Refuse sizes that do not divide the model.

    Raises:
        ConfigurationError: names what is not divided and the nearest sizes that do.
    """
    for option, size in (("tp", layout.tp), ("pp", layout.pp), ("ep", layout.ep)):
        if size < 1:
            raise ConfigurationError(f"--{option} {size}: expected 1 or more")
    divided = {
        "attention heads": spec.num_heads,
        "key-value heads": spec.num_heads if spec.mla else spec.num_kv_heads,
    }
    moe = spec.moe
    if moe is None or not all(moe.layers):
        divided["feed-forward channels"] = spec.ffn_hidden_size
    if moe is not None and moe.shared_ffn:
        divided["channels of the shared experts"] = moe.shared_ffn
    _check("tp", layout.tp, divided)
    _check("pp", layout.pp, {"layers": spec.num_layers})
    if moe is None and layout.ep > 1:
        raise ConfigurationError(
            f"--ep {layout.ep}: a {spec.architecture} has no experts; leave it at 1"
        )
    if moe is not None:
        _check("ep", layout.ep, {"experts": moe.experts})


def _check(option: str, size: int, divided: dict[str, int]) -> None:
    wrong = {name: count for name, count in divided.items() if count % size}
    if wrong:
        valid = divisors(math.gcd(*divided.values()))
        counts = " and ".join(f"{count} {name}" for name, count in wrong.items())
        raise ConfigurationError(
            f"--{option} {size} does not divide the {counts} of the model; nearest "
            f"valid: {nearest(size, valid)}"
        )


def stage_of(weight: Weight, spec: ModelSpec, layout: Layout) -> int:
    """The pipeline stage that writes a weight."""
    layer = re.match(r"decoder\.layers\.(\d+)\.", weight.rule.megatron)
    if layer is not None:
        return int(layer[1]) // (spec.num_layers // layout.pp)
    return 0 if weight.rule.megatron.startswith("embedding.") else layout.pp - 1


def padded_shape(weight: Weight, spec: ModelSpec, layout: Layout) -> tuple[int, ...]:
    """The shape that a layout gives a weight: the vocabulary is padded."""
    if isinstance(weight.rule.transform, PadVocabulary):
        return (spec.padded_vocab(layout.tp), *weight.shape[1:])
    return weight.shape


def pieces_of(weight: Weight, spec: ModelSpec, layout: Layout) -> Iterator[Piece]:
    """The pieces of a weight in the order of the ranks.

    Blocks that are each divided, such as gate and up, are pieces of their own, also
    where nothing is divided.

    Raises:
        ConfigurationError: the layout does not divide the weight.
    """
    shape = padded_shape(weight, spec, layout)
    first = layout.stage * stage_of(weight, spec, layout)
    shard, count = weight.rule.shard, layout.tp
    expert = re.search(r"\.mlp\.experts\.(\d+)\.", weight.rule.megatron)
    if expert is not None and spec.moe is not None:
        first += int(expert[1]) // (spec.moe.experts // layout.ep)
        count = 1
    zeros = (0,) * len(shape)
    if shard.dim is None:
        yield Piece(first, zeros, shape)
        return
    size, rest = divmod(shape[shard.dim], shard.blocks * count)
    if rest:
        raise ConfigurationError(
            f"{weight.key} has {shape[shard.dim]} rows or columns, which "
            f"{count} ranks cannot divide. Choose a smaller --tp."
        )
    for rank in range(count):
        for block in range(shard.blocks):
            start = (block * count + rank) * size
            yield Piece(
                first + rank,
                (*zeros[: shard.dim], start, *zeros[shard.dim + 1 :]),
                (*shape[: shard.dim], size, *shape[shard.dim + 1 :]),
            )
