"""Micro-batches through a divided model: gradients of a loss, or log-probs only.

Every function here is a collective over the data-parallel ranks, which gather the
weights for one another: each runs the same number of micro-batches. Tensor-parallel
ranks pass the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_rl.backends.training.base import (
    Batch,
    LossFunction,
    ModelOutput,
    needs_entropy,
)
from nemo_rl.backends.training.dtensor.model import ShardedModel
from nemo_rl.backends.training.logprobs import token_logprobs
from nemo_rl.backends.training.micro_batches import call_loss, predicted_positions


@dataclass(frozen=True)
class ForwardContext:
    """What a forward pass needs beside the micro-batch.

    Attributes:
        model: this rank's part of the model.
        temperature: divides the logits, as the sampler did.
        chunk: tokens whose logits are turned to fp32 at once; None means all.
        clear_cache_every: micro-batches after which the CUDA allocator gives its
            unused memory back; None means never.
    """

    model: ShardedModel
    temperature: float
    chunk: int | None = None
    clear_cache_every: int | None = None


def forward(context: ForwardContext, micro: Batch, *, entropy: bool) -> ModelOutput:
    """Log-probs [b, S] of a micro-batch's tokens, and their entropy if asked for."""
    ids, select = micro["input_ids"], predicted_positions(micro)
    logits = context.model.logits(ids, select)
    shifted = torch.zeros_like(select)
    shifted[:, 1:] = select[:, :-1]
    targets = ids[shifted]
    chunk = context.chunk or len(targets)
    parts = list(zip(logits.split(chunk), targets.split(chunk), strict=True))
    logprobs = torch.cat(
        [
            token_logprobs(
                part,
                target,
                vocab_size=context.model.vocab_size,
                temperature=context.temperature,
            )
            for part, target in parts
        ]
    )
    dense = logprobs.new_zeros(select.shape)
    if not entropy:
        return ModelOutput(logprobs=dense.masked_scatter(shifted, logprobs))
    nats = torch.cat([_entropy(part, context.temperature) for part, _ in parts])
    return ModelOutput(
        logprobs=dense.masked_scatter(shifted, logprobs),
        entropy=dense.masked_scatter(shifted, nats),
    )


def _entropy(logits: Tensor, temperature: float) -> Tensor:
    """[T] fp32: -sum p log p of softmax(logits / temperature)."""
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def forward_backward(
    context: ForwardContext,
    micro_batches: list[dict[str, Tensor]],
    loss_fn: LossFunction,
) -> list[dict[str, float]]:
    """Accumulate the gradient of the summed loss shares.

    Returns:
        One metric dict per micro-batch; the loss itself is under ``"loss"``.
    """
    results = []
    for number, micro in enumerate(micro_batches, start=1):
        output = forward(context, micro, entropy=needs_entropy(loss_fn))
        share, metrics = call_loss(loss_fn, micro, output)
        share.backward()
        report = {**metrics, "loss": share}
        results.append({key: value.item() for key, value in report.items()})
        every = context.clear_cache_every
        if every and number % every == 0 and share.is_cuda:
            torch.cuda.empty_cache()
    return results


@torch.no_grad()
def forward_logprobs(
    context: ForwardContext, micro_batches: list[dict[str, Tensor]], rows: int
) -> Tensor:
    """Log-probs [rows, S] fp32 on the CPU, of the current weights."""
    outputs = [forward(context, micro, entropy=False) for micro in micro_batches]
    context.model.reshard()
    return torch.cat([output.logprobs.cpu() for output in outputs])[:rows]
