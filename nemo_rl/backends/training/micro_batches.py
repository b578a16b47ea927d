"""Shards cut into micro-batches, which positions are predicted, and the loss's call.

What every training engine does before its forward pass and after it; knows no model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.backends.training.base import Batch, LossFunction, ModelOutput

_NEVER_PADDED = ("global_valid_tokens", "global_valid_seqs")


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


def call_loss(
    loss_fn: LossFunction, micro: Batch, output: ModelOutput
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss share, metric shares) of a micro-batch; a loss may leave metrics out."""
    result = loss_fn(micro, output)
    return result if isinstance(result, tuple) else (result, {})
