"""From logits at chosen positions to what a loss, or a student, is given.

Knows tensors and one process group; no model. Position t-1 of the logits speaks of
token t: values are written to the column of the token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_rl.backends.training.base import Batch, ModelOutput
from nemo_rl.backends.training.logprobs import (
    likeliest_tokens,
    token_entropy,
    token_logprobs,
)


@dataclass(frozen=True)
class Reading:
    """How logits are read.

    Attributes:
        vocab_size: the real vocabulary; later columns are padding.
        temperature: divides the logits, as the sampler did.
        tp_group: ranks that share the vocabulary; None where it is whole.
        chunk: positions whose logits are turned to fp32 at once; None means all.
    """

    vocab_size: int
    temperature: float = 1.0
    tp_group: Any = None
    chunk: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of the functions in ``logprobs.py``."""
        return {
            "vocab_size": self.vocab_size,
            "temperature": self.temperature,
            "tp_group": self.tp_group,
        }


def output_of(
    reading: Reading,
    micro: Batch,
    select: Tensor,
    logits: Tensor,
    *,
    entropy: bool = False,
) -> ModelOutput:
    """Log-probs of a micro-batch's tokens, and what else its loss asks for.

    Args:
        reading: how.
        micro: with ``teacher_ids`` the log-probs of those tokens are added.
        select: [b, S] bool; where the logits stand, see ``predicted_positions``.
        logits: [T, V/tp] of the T selected positions in row-major order.
        entropy: whether the loss wants it.
    """
    shifted = _tokens_of(select)
    targets = micro["input_ids"][shifted]
    chunk = reading.chunk or len(targets)
    parts = logits.split(chunk)

    def dense(values: list[Tensor]) -> Tensor:
        joined = torch.cat(values)
        out = joined.new_zeros(*select.shape, *joined.shape[1:])
        return out.index_put(shifted.nonzero(as_tuple=True), joined)

    def of(targets: Tensor) -> list[Tensor]:
        pairs = zip(parts, targets.split(chunk), strict=True)
        return [token_logprobs(p, target, **reading.settings) for p, target in pairs]

    entropies = [token_entropy(part, **reading.settings) for part in parts if entropy]
    topk = None
    if "teacher_ids" in micro:
        topk = dense(of(micro["teacher_ids"][shifted]))
    return ModelOutput(dense(of(targets)), dense(entropies) if entropy else None, topk)


def likeliest_of(
    reading: Reading, select: Tensor, logits: Tensor, count: int
) -> dict[str, Tensor]:
    """What a teacher finds likeliest: columns for its student's micro-batch.

    Args:
        reading: how.
        select: as for ``output_of``.
        logits: the teacher's, as for ``output_of``.
        count: K.

    Returns:
        ``teacher_ids`` [b, S, K] int64 and ``teacher_logprobs`` [b, S, K] fp32; entry
        t speaks of what may stand in place of token t.
    """
    ids, values = likeliest_tokens(logits, count, **reading.settings)
    shifted = _tokens_of(select)
    found = {}
    for name, part in (("teacher_ids", ids), ("teacher_logprobs", values)):
        found[name] = part.new_zeros(*select.shape, part.shape[-1])
        found[name][shifted] = part
    return found


def _tokens_of(select: Tensor) -> Tensor:
    shifted = torch.zeros_like(select)
    shifted[:, 1:] = select[:, :-1]
    return shifted
