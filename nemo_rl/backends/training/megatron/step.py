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

from nemo_rl.backends.training.base import Batch, LossFunction, ModelOutput
from nemo_rl.backends.training.logprobs import token_logprobs
from nemo_rl.backends.training.micro_batches import call_loss, predicted_positions


@dataclass(frozen=True)
class ForwardContext:
    """What a forward pass needs beside the micro-batch.

    Attributes:
        model: the model, DDP-wrapped or bare.
        vocab_size: the real vocabulary; padding columns are masked.
        temperature: divides the logits, as the sampler did.
        device: where micro-batches go.
        chunk: tokens whose logits are turned to fp32 at once; None means all.
    """

    model: Any
    vocab_size: int
    temperature: float
    device: torch.device
    chunk: int | None = None


def _forward(
    context: ForwardContext, iterator: Iterator[dict[str, Tensor]], model: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    micro = next(iterator)
    ids = micro["input_ids"]
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    select = predicted_positions(micro)
    return model(ids, positions, None, select=select), micro, select


def _output(
    context: ForwardContext, micro: Batch, select: Tensor, logits: Tensor
) -> ModelOutput:
    """Scatter the selected positions' log-probs to [b, S]; entry t is token t's."""
    shifted = torch.zeros_like(select)
    shifted[:, 1:] = select[:, :-1]
    targets = micro["input_ids"][shifted]
    chunk = context.chunk or len(targets)
    values = torch.cat(
        [
            token_logprobs(
                part,
                target,
                vocab_size=context.vocab_size,
                temperature=context.temperature,
                tp_group=parallel_state.get_tensor_model_parallel_group(),
            )
            for part, target in zip(
                logits[0].split(chunk), targets.split(chunk), strict=True
            )
        ]
    )
    dense = values.new_zeros(select.shape)
    return ModelOutput(logprobs=dense.masked_scatter(shifted, values))


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
        share, metrics = call_loss(
            loss_fn, micro, _output(context, micro, select, logits)
        )
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
def forward_logprobs(
    context: ForwardContext, micro_batches: list[dict[str, Tensor]], rows: int
) -> Tensor | None:
    """Log-probs of the current weights.

    Returns:
        [rows, S] fp32 on the CPU on the last pipeline stage, else None.
    """

    def collect(micro: Batch, select: Tensor, logits: Tensor) -> tuple[Any, ...]:
        logprobs = _output(context, micro, select, logits).logprobs
        zero = logprobs.new_zeros(())
        return zero, zero.int(), {"logprobs": logprobs}

    def step(iterator: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        logits, micro, select = _forward(context, iterator, model)
        return logits, partial(collect, micro, select)

    results = _run_schedule(context, micro_batches, step, forward_only=True)
    if not results:
        return None
    return torch.cat([r["logprobs"] for r in results])[:rows].float().cpu()


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
