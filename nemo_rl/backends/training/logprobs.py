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
    """log softmax(logits) of K targets per row, over all shards of the vocabulary.

    Two collectives, on [T] and on [T, 1 + K] (maximum; sum of exponentials and target
    logits); every rank of ``group`` must call it with the same targets.
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
        target = torch.where(inside, shifted.gather(-1, column), 0.0)
        exps = shifted.exp_()
        sums = torch.cat([exps.sum(-1, keepdim=True), target], dim=-1)
        dist.all_reduce(sums, group=group)
        total, target = sums[:, :1], sums[:, 1:]
        ctx.save_for_backward(exps.div_(total), column, inside)
        return target - total.log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        probs, column, inside = ctx.saved_tensors
        grad_logits = probs * -grad.sum(-1, keepdim=True)
        grad_logits.scatter_add_(-1, column, grad * inside)
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
    """Log-probability of each target token, or of several for each position.

    Args:
        logits: [T, V/tp] of this rank's vocabulary shard, any float dtype; not
            modified.
        targets: [T] or [T, K] int64 token ids, the same on every rank of
            ``tp_group``; the K of a row differ from one another.
        vocab_size: the real vocabulary; later columns are padding.
        temperature: logits are divided by it, as the sampler does.
        tp_group: tensor-parallel group, None or size 1 for an undivided vocabulary.

    Returns:
        Shape of ``targets``, fp32, differentiable with respect to ``logits``.
    """
    logits, start, divided = _prepare(logits, vocab_size, temperature, tp_group)
    if divided:
        several = targets.view(len(targets), -1)
        values = _VocabParallelLogprobs.apply(logits, several, start, tp_group)
        return values.view(targets.shape)
    if targets.dim() == 1:
        return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return logits.log_softmax(-1).gather(-1, targets)


@torch.no_grad()
def likeliest_tokens(
    logits: Tensor,
    count: int,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    tp_group: Any = None,
) -> tuple[Tensor, Tensor]:
    """The ``count`` likeliest tokens of each position and their log-probabilities.

    Args:
        logits: as for ``token_logprobs``.
        count: K, at most the vocabulary; the whole of it where larger.
        vocab_size: the real vocabulary; later columns are padding.
        temperature: logits are divided by it, as the sampler does.
        tp_group: every rank of it must call this.

    Returns:
        [T, K] int64 ids and [T, K] fp32, the same on every rank of ``tp_group``.
    """
    count = min(count, vocab_size)
    ready, start, divided = _prepare(logits, vocab_size, temperature, tp_group)
    best = ready.topk(min(count, ready.shape[-1]), dim=-1)
    ids = best.indices + start
    if divided:
        # Each shard's best; ranks of a shorter shard hold as many, shards being equal.
        every = [torch.empty_like(ids) for _ in range(tp_group.size())]
        dist.all_gather(every, ids.contiguous(), group=tp_group)
        peaks = [torch.empty_like(best.values) for _ in range(tp_group.size())]
        dist.all_gather(peaks, best.values.contiguous(), group=tp_group)
        chosen = torch.cat(peaks, -1).topk(count, dim=-1).indices
        ids = torch.cat(every, -1).gather(-1, chosen)
    settings: dict[str, Any] = {"temperature": temperature, "tp_group": tp_group}
    return ids, token_logprobs(logits, ids, vocab_size=vocab_size, **settings)


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
