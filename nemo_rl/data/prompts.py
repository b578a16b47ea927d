"""PromptEncoder: rows whose answer the policy is to write. Knows no reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nemo_rl.data.encoding import EncoderContext, padded
from nemo_rl.data.llm_message_utils import render_prompt
from nemo_rl.data.rows import RowReader
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import DataError


class PromptEncoder:
    """Makes a ``PromptBatch`` (data/interfaces.py) of ``PromptRow`` rows."""

    def __init__(self, context: EncoderContext) -> None:
        """Read the prompt files that the data section names."""
        self._context = context
        self._reader = RowReader(context.config, search_dir=context.search_dir)

    def encode(self, row: Any, where: str, idx: int) -> dict[str, Any]:
        """See ``Encoder``; a prompt beyond the longest length is an error."""
        read = self._reader.read(row, where)
        text, ids = render_prompt(read.messages, self._context.need_tokenizer())
        limit = self._context.max_length
        if not ids:
            raise DataError(f"{where}: the prompt has no tokens.")
        if limit is not None and len(ids) > limit:
            raise DataError(
                f"{where}: the prompt has {len(ids)} tokens, the longest allowed is "
                f"{limit}. Remove the row, or raise "
                "policy.max_total_sequence_length (which also holds the response) or "
                "data.max_input_seq_length."
            )
        return {
            "text": text,
            "ids": ids,
            "idx": idx,
            "prompt": text,
            "messages": read.messages,
            "answer": read.answer,
            "task_name": read.task_name,
            "row": read.row,
        }

    def collate(self, items: Sequence[Mapping[str, Any]]) -> BatchedDataDict:
        """A ``PromptBatch`` of P rows."""
        ids = [item["ids"] for item in items]
        columns = {
            key: [item[key] for item in items]
            for key in ("prompt", "messages", "answer", "task_name", "row")
        }
        return BatchedDataDict(
            {
                "input_ids": padded(ids, self._context.pad_id, torch.int64),
                "input_lengths": torch.tensor([len(row) for row in ids]),
                "idx": torch.tensor([item["idx"] for item in items]),
                **columns,
            }
        )
