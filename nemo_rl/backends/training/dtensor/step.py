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
from nemo_rl.backends.training.micro_batches import call_loss, predicted_positions
from nemo_rl.backends.training.outputs import Reading, likeliest_of, output_of
from nemo_rl.utils import pulse


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

    @property
    def reading(self) -> Reading:
        """How logits are read: every rank has those of the whole vocabulary."""
        return Reading(
            vocab_size=self.model.vocab_size,
            temperature=self.temperature,
            chunk=self.chunk,
        )


def forward(context: ForwardContext, micro: Batch, *, entropy: bool) -> ModelOutput:
    """What the loss is given of a micro-batch."""
    pulse.beat()
    select = predicted_positions(micro)
    logits = context.model.logits(micro["input_ids"], select)
    return output_of(context.reading, micro, select, logits, entropy=entropy)


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


@torch.no_grad()
def add_teacher(
    context: ForwardContext, micro_batches: list[dict[str, Tensor]], count: int
) -> None:
    """Add what a teacher finds likeliest to micro-batches; see ``likeliest_of``.

    Args:
        context: of the teacher.
        micro_batches: get two columns.
        count: K.
    """
    for micro in micro_batches:
        select = predicted_positions(micro)
        logits = context.model.logits(micro["input_ids"], select)
        micro |= likeliest_of(context.reading, select, logits, count)
    context.model.reshard()
