"""Prompts as a generator takes them: lengths, seeds, and room for a response."""

from __future__ import annotations

import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import ConfigurationError, DataError


def checked_prompts(data: BatchedDataDict, limit: int) -> BatchedDataDict:
    """The prompts of a batch with lengths and seeds, checked.

    Args:
        data: ``input_ids`` [B, S] right-padded, ``input_lengths`` [B] (or
            ``attention_mask``), and ``sampling_seed`` [B]; without seeds a row's seed
            is its index. ``max_new_tokens`` [B] is kept if it is there.
        limit: tokens of prompt and response together.

    Raises:
        ConfigurationError: a prompt leaves no room for a response.
        DataError: no prompt, or an empty one.
    """
    ids = data["input_ids"]
    if "input_lengths" in data:
        lengths = data["input_lengths"]
    else:
        lengths = data["attention_mask"].sum(-1)
    if not len(ids) or int(lengths.min()) < 1 or int(lengths.max()) > ids.shape[1]:
        raise DataError(
            f"prompts of {lengths.tolist()} tokens in a batch {list(ids.shape)}: "
            "each needs at least one token and no more than the batch is wide"
        )
    longest = int(lengths.max())
    if longest >= limit:
        raise ConfigurationError(
            f"a prompt has {longest} tokens and policy.max_total_sequence_length "
            f"is {limit}: no room for a response. Raise it to at least "
            f"{longest + 1}, or shorten the prompts."
        )
    seeds = data.get("sampling_seed")
    if seeds is None:
        seeds = torch.arange(len(ids))
    columns = {"input_ids": ids, "input_lengths": lengths, "sampling_seed": seeds}
    if "max_new_tokens" in data:
        columns["max_new_tokens"] = data["max_new_tokens"]
    return BatchedDataDict(columns)
