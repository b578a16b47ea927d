"""ConversationEncoder: rows with answers to learn from. Knows no loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nemo_rl.data.encoding import EncoderContext, fitted, token_batch
from nemo_rl.data.llm_message_utils import encode_exchange
from nemo_rl.data.rows import RowReader
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import DataError

_IGNORED = -100
"""Label of a token that is not trained on, as in ``transformers``."""


class ConversationEncoder:
    """Makes a ``TrainingDatumSpec`` batch (data/interfaces.py) of conversations.

    A row has ``messages`` with at least one assistant turn, or ``prompt`` and
    ``response``, or tokens: ``input_ids``, and ``labels`` that are -100 where nothing
    is to be learned. The mask is 1 on what an assistant wrote and on the token that
    ends its turn.
    """

    def __init__(self, context: EncoderContext) -> None:
        """Read the prompt files that the data section names."""
        self._context = context
        self._reader = RowReader(context.config, search_dir=context.search_dir)

    def encode(self, row: Any, where: str, idx: int) -> dict[str, Any]:
        """See ``Encoder``; ``data.overlong`` decides about long rows."""
        if isinstance(row, Mapping) and "input_ids" in row:
            ids, mask = _labelled(row, where)
            text = str(ids)
        else:
            messages = self._reader.read_conversation(row, where)
            text, ids, mask = encode_exchange(
                messages, self._context.need_tokenizer(), where
            )
        sequence = fitted(ids, mask, self._context, where)
        return {"text": text, "idx": idx, "sequence": sequence}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> BatchedDataDict:
        """Columns of a ``TrainingDatumSpec`` and ``idx`` [B]."""
        sequences = [item["sequence"] for item in items]
        return BatchedDataDict(
            {
                **token_batch(sequences, self._context.pad_id),
                "idx": torch.tensor([item["idx"] for item in items]),
            }
        )


def _labelled(row: Mapping[str, Any], where: str) -> tuple[list[int], list[int]]:
    """Tokens and mask of a row that is tokenised already."""
    columns = {}
    for name in ("input_ids", "labels", "attention_mask"):
        value = row.get(name)
        if value is None and name == "attention_mask":
            continue
        value = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(value, (list, tuple)) or not all(
            isinstance(token, int) for token in value
        ):
            raise DataError(
                f"{where}: field {name!r} must be a list of integers, got {value!r:.60}"
            )
        columns[name] = list(value)
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: token columns differ in length: {lengths}.")
    valid = columns.get("attention_mask", [1] * lengths["input_ids"])
    if sorted(valid, reverse=True) != valid:
        raise DataError(
            f"{where}: attention_mask must be 1 on the tokens and 0 on padding at "
            "the end."
        )
    length = sum(valid)
    ids, labels = columns["input_ids"][:length], columns["labels"][:length]
    wrong = [
        position
        for position, (token, label) in enumerate(zip(ids, labels, strict=True))
        if label not in (token, _IGNORED)
    ]
    if wrong:
        raise DataError(
            f"{where}: labels[{wrong[0]}] is {labels[wrong[0]]}; expected the token of "
            f"the same place ({ids[wrong[0]]}; labels are not shifted) or {_IGNORED}."
        )
    return ids, [int(label != _IGNORED) for label in labels]
