"""Log-probabilities and entropies from logits whose vocabulary is split over ranks.

Knows tensors and one process group; no model, no loss. Padding columns beyond the real
vocabulary are masked, so they take no probability.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _VocabParallelLogprobs(torch.autograd.Function):
    """log softmax(logits)[target] with the softmax over all shards of the vocabulary.

    Three collectives on [T] tensors (max, sum of exponentials, target logit); every
    rank of ``group`` must call it with the same targets.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, logits: Tensor, targets: Tensor, start: int, group: Any
    ) -> Tensor:
        peak = logits.max(dim=-1).values
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - peak[:, None]
        inside = (targets >= start) & (targets < start + logits.shape[-1])
        column = (targets - start).clamp(0, logits.shape[-1] - 1)
        target = shifted.gather(-1, column[:, None])[:, 0]
        exps = shifted.exp_()
        sums = torch.stack([exps.sum(-1), torch.where(inside, target, 0.0)])
        dist.all_reduce(sums, group=group)
        probs = exps.div_(sums[0][:, None])
        ctx.save_for_backward(probs, column, inside)
        return sums[1] - sums[0].log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        probs, column, inside = ctx.saved_tensors
        grad_logits = probs * -grad[:, None]
        grad_logits.scatter_add_(-1, column[:, None], (grad * inside)[:, None])
        return grad_logits, None, None, None


class _VocabParallelEntropy(torch.autograd.Function):
    """-sum p ln p with the sum over all shards of the vocabulary.

    With shifted logits z and Z = sum e^z it is ln Z - sum(e^z z) / Z, and its slope
    with respect to a logit is -p (ln p + entropy). Two collectives on [T] tensors
    where there is a group; every rank of it must call it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, group: Any) -> Tensor:  # type: ignore[override]
        peak = logits.max(dim=-1).values
        if group is not None:
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - peak[:, None]
        exps = shifted.exp()
        total = exps.sum(-1)
        sums = torch.stack([total, exps.mul_(shifted).sum(-1)])
        if group is not None:
            dist.all_reduce(sums, group=group)
        log_total = sums[0].log()
        entropy = log_total - sums[1] / sums[0]
        ctx.save_for_backward(shifted.sub_(log_total[:, None]), entropy)
        return entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logprobs, entropy = ctx.saved_tensors
        slope = logprobs.exp().mul_(logprobs + entropy[:, None])
        return slope.mul_(-grad[:, None]), None


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    tp_group: Any = None,
) -> Tensor:
    """Log-probability of each target token.

    Args:
        logits: [T, V/tp] of this rank's vocabulary shard, any float dtype; not
            modified.
        targets: [T] int64 token ids, the same on every rank of ``tp_group``.
        vocab_size: the real vocabulary; later columns are padding.
        temperature: logits are divided by it, as the sampler does.
        tp_group: tensor-parallel group, None or size 1 for an undivided vocabulary.

    Returns:
        [T] fp32, differentiable with respect to ``logits``.
    """
    logits, start, divided = _prepare(logits, vocab_size, temperature, tp_group)
    if not divided:
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return _VocabParallelLogprobs.apply(logits, targets, start, tp_group)


def token_entropy(
    logits: Tensor, *, vocab_size: int, temperature: float = 1.0, tp_group: Any = None
) -> Tensor:
    """Entropy in nats of the distribution that each token is drawn from.

    Args:
        logits: as for ``token_logprobs``.
        vocab_size: the real vocabulary; later columns are padding.
        temperature: logits are divided by it, as the sampler does.
        tp_group: tensor-parallel group, None or size 1 for an undivided vocabulary.

    Returns:
        [T] fp32, between 0 and ln(vocab_size), differentiable with respect to
        ``logits``.
    """
    logits, _, divided = _prepare(logits, vocab_size, temperature, tp_group)
    return _VocabParallelEntropy.apply(logits, tp_group if divided else None)


def _prepare(
    logits: Tensor, vocab_size: int, temperature: float, tp_group: Any
) -> tuple[Tensor, int, bool]:
    """Logits as the sampler sees them, the shard's first token, are there others."""
    divided = tp_group is not None and tp_group.size() > 1
    start = tp_group.rank() * logits.shape[-1] if divided else 0
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return mask_padding(logits, vocab_size - start), start, divided


def mask_padding(logits: Tensor, valid: int) -> Tensor:
    """Set the columns from ``valid`` on to the lowest finite value.

    Finite, because a shard that holds padding alone would otherwise have a row maximum
    of -inf.
    """
    if valid >= logits.shape[-1]:
        return logits
    padding = torch.arange(logits.shape[-1], device=logits.device) >= max(valid, 0)
    return logits.masked_fill(padding, torch.finfo(logits.dtype).min)
