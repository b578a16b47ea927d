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
from nemo_rl.backends.training.logprobs import (
    likeliest_tokens,
    token_entropy,
    token_logprobs,
)

_NEVER_PADDED = ("global_valid_tokens", "global_valid_seqs")


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


def split_micro_batches(
    batch: Batch, size: int, device: torch.device, *, multiple: int = 1
) -> list[dict[str, Tensor]]:
    """Cut a shard into equal micro-batches on the device.

    Columns beyond the longest row are dropped. The last micro-batch is filled up with
    rows whose masks are zero, because the pipeline schedule wants equal shapes.

    Args:
        batch: tensors [B, ...] with ``input_ids`` [B, S] and ``input_lengths`` [B];
            values that are not tensors are left out.
        size: rows of a micro-batch.
        device: target device.
        multiple: the number of columns becomes a multiple of this.
    """
    longest = max(int(batch["input_lengths"].max()), 2)
    longest += -longest % multiple
    rows, columns = batch["input_ids"].shape
    tensors: dict[str, Tensor] = {}
    for key, value in batch.items():
        if not isinstance(value, Tensor):
            continue
        if value.dim() and value.shape[0] == rows and key not in _NEVER_PADDED:
            if value.dim() > 1 and value.shape[1] == columns:
                value = _fit_columns(value, longest)
            missing = -rows % size
            if missing:
                value = torch.cat([value, value.new_zeros(missing, *value.shape[1:])])
        tensors[key] = value.to(device)
    total = rows + (-rows % size)
    return [
        {
            key: value if key in _NEVER_PADDED else value[start : start + size]
            for key, value in tensors.items()
        }
        for start in range(0, total, size)
    ]


def _fit_columns(value: Tensor, columns: int) -> Tensor:
    missing = columns - value.shape[1]
    if missing <= 0:
        return value[:, :columns]
    filler = value.new_zeros(value.shape[0], missing, *value.shape[2:])
    return torch.cat([value, filler], dim=1)


def predicted_positions(micro: Batch) -> Tensor:
    """[b, S] bool: positions whose next token's log-probability is wanted.

    At least one is always set, so that every rank enters the same collectives and the
    loss keeps a graph, also for a micro-batch without a single response token.
    """
    mask = micro.get("token_mask")
    if mask is None:
        positions = torch.arange(micro["input_ids"].shape[1])
        lengths = micro["input_lengths"].cpu()
        mask = (positions[None] < lengths[:, None]).to(micro["input_ids"].device)
    select = torch.zeros_like(micro["input_ids"], dtype=torch.bool)
    select[:, :-1] = mask[:, 1:] > 0
    if not bool(select.any()):
        select[0, 0] = True
    return select


def last_positions(micro: Batch) -> Tensor:
    """[b, S] bool: the last token of each row, where a reward model's score stands."""
    select = torch.zeros_like(micro["input_ids"], dtype=torch.bool)
    last = (micro["input_lengths"] - 1).clamp(min=0)
    return select.scatter(1, last[:, None].to(select.device), True)


def _forward(
    context: ForwardContext, iterator: Iterator[dict[str, Tensor]], model: Any
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    micro = next(iterator)
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
    shifted = torch.zeros_like(select)
    shifted[:, 1:] = select[:, :-1]
    targets = micro["input_ids"][shifted]
    chunk = context.chunk or len(targets)
    parts = logits[0].split(chunk)
    settings: dict[str, Any] = {
        "vocab_size": context.vocab_size,
        "temperature": context.temperature,
        "tp_group": parallel_state.get_tensor_model_parallel_group(),
    }

    def dense(values: list[Tensor]) -> Tensor:
        joined = torch.cat(values)
        out = joined.new_zeros(*select.shape, *joined.shape[1:])
        return out.index_put((shifted.nonzero(as_tuple=True)), joined)

    def of(targets: Tensor) -> list[Tensor]:
        pairs = zip(parts, targets.split(chunk), strict=True)
        return [token_logprobs(part, target, **settings) for part, target in pairs]

    entropies = [token_entropy(part, **settings) for part in parts if entropy]
    topk = None
    if "teacher_ids" in micro:
        topk = dense(of(micro["teacher_ids"][shifted]))
    return ModelOutput(dense(of(targets)), dense(entropies) if entropy else None, topk)


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
        share, metrics = _call_loss(loss_fn, micro, output)
        # Clones: the schedule may scale the loss tensor in place afterwards.
        report = {key: value.detach().clone() for key, value in metrics.items()}
        report["loss"] = share.detach().clone()
        tokens = torch.ones((), dtype=torch.int, device=share.device)
        return share, tokens, report

    def step(iterator: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        logits, micro, select = _forward(context, iterator, model)
        return logits, partial(loss, micro, select)

    return _run_schedule(context, micro_batches, step, forward_only=False)


def _call_loss(
    loss_fn: LossFunction, micro: Batch, output: ModelOutput
) -> tuple[Tensor, dict[str, Tensor]]:
    result = loss_fn(micro, output)
    return result if isinstance(result, tuple) else (result, {})


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
        ids, values = likeliest_tokens(
            logits[0],
            count,
            vocab_size=context.vocab_size,
            temperature=context.temperature,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )
        shifted = torch.zeros_like(select)
        shifted[:, 1:] = select[:, :-1]
        found = {}
        for name, part in (("teacher_ids", ids), ("teacher_logprobs", values)):
            found[name] = part.new_zeros(*select.shape, part.shape[-1])
            found[name][shifted] = part
        zero = values.new_zeros(())
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
