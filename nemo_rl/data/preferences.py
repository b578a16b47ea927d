"""PreferenceEncoder: rows with a better and a worse answer. Knows no loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nemo_rl.data.encoding import EncoderContext, fitted, token_batch
from nemo_rl.data.llm_message_utils import encode_exchange
from nemo_rl.data.rows import RowReader
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


class PreferenceEncoder:
    """Makes a ``PreferenceBatch`` (data/interfaces.py) of pairs.

    A row has ``prompt`` (a text or messages) and ``chosen`` and ``rejected``: texts,
    lists of messages that go on from the prompt, or whole conversations with the same
    beginning. Only the last answer of each is trained on.
    """

    def __init__(self, context: EncoderContext) -> None:
        """Read the prompt files that the data section names."""
        self._context = context
        self._reader = RowReader(context.config, search_dir=context.search_dir)

    def encode(self, row: Any, where: str, idx: int) -> dict[str, Any]:
        """See ``Encoder``; a pair with a row that is too long is left out as a pair."""
        pair = self._reader.read_preference(row, where)
        sequences, texts = [], []
        for name, messages in zip(("chosen", "rejected"), pair, strict=True):
            text, ids, mask = encode_exchange(
                messages,
                self._context.need_tokenizer(),
                f"{where}: {name}",
                last_only=True,
            )
            texts.append(text)
            sequences.append(fitted(ids, mask, self._context, f"{where}: {name}"))
        counts = all(counts for _, _, counts in sequences)
        return {
            "text": "\n".join(texts),
            "idx": idx,
            "sequences": [(ids, mask, counts) for ids, mask, _ in sequences],
        }

    def collate(self, items: Sequence[Mapping[str, Any]]) -> BatchedDataDict:
        """2 P rows: chosen and rejected of each pair, one after the other."""
        sequences = [sequence for item in items for sequence in item["sequences"]]
        numbers = [item["idx"] for item in items for _ in range(2)]
        return BatchedDataDict(
            {
                **token_batch(sequences, self._context.pad_id),
                "idx": torch.tensor(numbers),
            }
        )
