"""Micro-batches through Megatron's pipeline schedule: one update, or log-probs only.

Every function here is a collective over the whole process group: each rank of a
data-parallel replica passes the same shard, and every replica the same number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_rl.backends.training.base import (
    Batch,
    LossFunction,
    ModelOutput,
    needs_entropy,
)
from nemo_rl.backends.training.micro_batches import call_loss, predicted_positions
from nemo_rl.backends.training.outputs import Reading, likeliest_of, output_of
from nemo_rl.utils import pulse


@dataclass(frozen=True)
class ForwardContext:
    """What a forward pass needs beside the micro-batch.

    Attributes:
        model: the model, DDP-wrapped or bare.
        vocab_size: the real vocabulary; padding columns are masked.
        temperature: divides the logits, as the sampler did.
        device: where micro-batches go.
        chunk: tokens whose logits are turned to fp32 at once; None means all.
        scored: the model is a reward model.
    """

    model: Any
    vocab_size: int
    temperature: float
    device: torch.device
    chunk: int | None = None
    scored: bool = False

    @property
    def reading(self) -> Reading:
        """How the logits of a tensor-parallel rank are read."""
        return Reading(
            vocab_size=self.vocab_size,
            temperature=self.temperature,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            chunk=self.chunk,
        )


def last_positions(micro: Batch) -> Tensor:
    """[b, S] bool: the last token of each row, where a reward model's score stands."""
    select = torch.zeros_like(micro["input_ids"], dtype=torch.bool)
    last = (micro["input_lengths"] - 1).clamp(min=0)
    return select.scatter(1, last[:, None].to(select.device), True)


def _forward(
    context: ForwardContext, iterator: Iterator[dict[str, Tensor]], model: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    micro = next(iterator)
    pulse.beat()
    ids = micro["input_ids"]
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    select = (last_positions if context.scored else predicted_positions)(micro)
    return model(ids, positions, None, select=select), micro, select


def _output(
    context: ForwardContext,
    micro: Batch,
    select: Tensor,
    logits: Tensor,
    *,
    entropy: bool = False,
) -> ModelOutput:
    """Scatter the selected positions' values to [b, S]; entry t is token t's."""
    if context.scored:
        nothing = logits.new_full(select.shape, torch.nan)
        return ModelOutput(nothing, scores=logits[0, :, 0].float())
    return output_of(context.reading, micro, select, logits[0], entropy=entropy)


def forward_backward(
    context: ForwardContext,
    micro_batches: list[dict[str, Tensor]],
    loss_fn: LossFunction,
) -> list[dict[str, Tensor]]:
    """Accumulate the gradient of the summed loss shares.

    Returns:
        One metric dict per micro-batch on the last pipeline stage, else empty. The
        loss itself is under ``"loss"``.
    """

    def loss(micro: Batch, select: Tensor, logits: Tensor) -> tuple[Any, ...]:
        output = _output(context, micro, select, logits, entropy=needs_entropy(loss_fn))
        share, metrics = call_loss(loss_fn, micro, output)
        # Clones: the schedule may scale the loss tensor in place afterwards.
        report = {key: value.detach().clone() for key, value in metrics.items()}
        report["loss"] = share.detach().clone()
        tokens = torch.ones((), dtype=torch.int, device=share.device)
        return share, tokens, report

    def step(iterator: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        logits, micro, select = _forward(context, iterator, model)
        return logits, partial(loss, micro, select)

    return _run_schedule(context, micro_batches, step, forward_only=False)


@torch.no_grad()
def forward_only(
    context: ForwardContext, micro_batches: list[dict[str, Tensor]], rows: int
) -> Tensor | None:
    """Log-probs of the current weights, or a reward model's scores.

    Returns:
        [rows, S] or [rows] fp32 on the CPU on the last pipeline stage, else None.
    """

    def collect(micro: Batch, select: Tensor, logits: Tensor) -> tuple[Any, ...]:
        output = _output(context, micro, select, logits)
        values = output.logprobs if output.scores is None else output.scores
        zero = values.new_zeros(())
        return zero, zero.int(), {"values": values}

    def step(iterator: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        logits, micro, select = _forward(context, iterator, model)
        return logits, partial(collect, micro, select)

    results = _run_schedule(context, micro_batches, step, forward_only=True)
    if not results:
        return None
    return torch.cat([r["values"] for r in results])[:rows].float().cpu()


@torch.no_grad()
def add_teacher(
    context: ForwardContext, micro_batches: list[dict[str, Tensor]], count: int
) -> None:
    """Add what a teacher finds likeliest to micro-batches, on the last stage.

    Args:
        context: of the teacher.
        micro_batches: get ``teacher_ids`` [b, S, K] int64 and ``teacher_logprobs``
            [b, S, K] fp32; entry t speaks of what may stand in place of token t.
        count: K.
    """

    def collect(select: Tensor, logits: Tensor) -> tuple[Any, ...]:
        found = likeliest_of(context.reading, select, logits[0], count)
        zero = found["teacher_logprobs"].new_zeros(())
        return zero, zero.int(), found

    def step(iterator: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        logits, _, select = _forward(context, iterator, model)
        return logits, partial(collect, select)

    results = _run_schedule(context, micro_batches, step, forward_only=True)
    for micro, found in zip(micro_batches, results, strict=bool(results)):
        micro |= found


def _run_schedule(
    context: ForwardContext,
    micro_batches: list[dict[str, Tensor]],
    step: Any,
    *,
    forward_only: bool,
) -> list[dict[str, Tensor]]:
    rows, columns = micro_batches[0]["input_ids"].shape
    results = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter(micro_batches),
        model=context.model,
        num_microbatches=len(micro_batches),
        seq_length=columns,
        micro_batch_size=rows,
        forward_only=forward_only,
    )
    return results or []
