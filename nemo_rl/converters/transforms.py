"""Exact inverses between Hugging Face tensors and one Megatron tensor.

Each transform has ``merge`` (HF tensors to Megatron) and ``split`` (the way back);
``shard`` and ``unshard`` cut the Megatron tensor over tensor-parallel ranks. All are
pure reshapes: no value changes, so a round trip is bit-identical. torch is imported
where it is used: rules are read on login nodes as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_rl.converters.model_spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor


class Identity:
    """One tensor on both sides."""

    def merge(self, parts: Sequence[Tensor], spec: ModelSpec) -> Tensor:
        """Return the only part."""
        return parts[0]

    def split(self, full: Tensor, spec: ModelSpec) -> list[Tensor]:
        """Return the tensor as the only part."""
        return [full]


class MergeQkv:
    """Query, key, value interleaved per GQA group, as Megatron's ``linear_qkv``.

    Megatron's rows are, for each of the ``g`` groups: the ``h/g`` query heads, then
    one key head, then one value head. Works for weights [rows, hidden] and biases.
    """

    def merge(self, parts: Sequence[Tensor], spec: ModelSpec) -> Tensor:
        """(q, k, v) to [(h + 2 g) * head_dim, ...]."""
        import torch

        groups, rest = spec.num_kv_heads, parts[0].shape[1:]
        grouped = [part.reshape(groups, -1, *rest) for part in parts]
        return torch.cat(grouped, dim=1).reshape(-1, *rest)

    def split(self, full: Tensor, spec: ModelSpec) -> list[Tensor]:
        """[(h + 2 g) * head_dim, ...] to (q, k, v)."""
        groups, rest = spec.num_kv_heads, full.shape[1:]
        queries = spec.num_heads // groups * spec.head_dim
        grouped = full.reshape(groups, -1, *rest)
        parts = grouped.split([queries, spec.head_dim, spec.head_dim], dim=1)
        return [part.reshape(-1, *rest) for part in parts]


class InterleaveQkv:
    """All queries, then all keys, then all values in one tensor (Phi-3)."""

    def merge(self, parts: Sequence[Tensor], spec: ModelSpec) -> Tensor:
        """[q + k + v rows, ...] to Megatron's order."""
        key = spec.sizes["key"]
        return MergeQkv().merge(parts[0].split([spec.sizes["query"], key, key]), spec)

    def split(self, full: Tensor, spec: ModelSpec) -> list[Tensor]:
        """Megatron's order to [q + k + v rows, ...]."""
        import torch

        return [torch.cat(MergeQkv().split(full, spec))]


class MergeGateUp:
    """Gate rows, then up rows, as Megatron's gated ``linear_fc1``."""

    def merge(self, parts: Sequence[Tensor], spec: ModelSpec) -> Tensor:
        """(gate, up) to [2 * ffn, hidden]."""
        import torch

        return torch.cat(list(parts), dim=0)

    def split(self, full: Tensor, spec: ModelSpec) -> list[Tensor]:
        """[2 * ffn, hidden] to (gate, up)."""
        return list(full.chunk(2, dim=0))


class PadVocabulary:
    """Rows of zeros after the vocabulary, so that tensor parallelism divides it.

    The padded size is the Megatron tensor's own; ``merge`` leaves the padding to
    ``pad_rows`` because the size depends on the layout.
    """

    def merge(self, parts: Sequence[Tensor], spec: ModelSpec) -> Tensor:
        """Return the unpadded [vocab, hidden]."""
        return parts[0]

    def split(self, full: Tensor, spec: ModelSpec) -> list[Tensor]:
        """Drop the padding rows."""
        return [full[: spec.vocab_size]]


Transform = Identity | MergeQkv | InterleaveQkv | MergeGateUp | PadVocabulary
"""Exact conversions between the two sides of a rule."""


def pad_rows(full: Tensor, rows: int) -> Tensor:
    """Append zero rows up to ``rows``; the tensor itself where none are missing."""
    import torch

    missing = rows - full.shape[0]
    if missing == 0:
        return full
    return torch.cat([full, full.new_zeros(missing, *full.shape[1:])])


@dataclass(frozen=True)
class Shard:
    """How tensor-parallel ranks divide a Megatron tensor.

    Attributes:
        dim: the divided dimension, None when every rank holds all of it.
        blocks: equal blocks along ``dim`` that are each divided (2 for gate and up).
    """

    dim: int | None
    blocks: int = 1

    def shard(self, full: Tensor, rank: int, size: int) -> Tensor:
        """The part of tensor-parallel rank ``rank`` of ``size``."""
        import torch

        if self.dim is None or size == 1:
            return full
        parts = [
            block.chunk(size, dim=self.dim)[rank]
            for block in full.chunk(self.blocks, dim=self.dim)
        ]
        return torch.cat(parts, dim=self.dim)

    def unshard(self, parts: Sequence[Tensor]) -> Tensor:
        """Join the parts of all ranks, in rank order."""
        import torch

        if self.dim is None or len(parts) == 1:
            return parts[0]
        blocks = zip(
            *(part.chunk(self.blocks, dim=self.dim) for part in parts), strict=True
        )
        return torch.cat([torch.cat(b, dim=self.dim) for b in blocks], dim=self.dim)


REPLICATED = Shard(None)
COLUMN = Shard(0)
ROW = Shard(1)
COLUMN_GATED = Shard(0, blocks=2)
