"""What turns rows into batches: the Encoder protocol, and padding.

Knows no kind of row: ``prompts.py``, ``conversations.py`` and ``preferences.py`` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nemo_rl.config.data import DataConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import ConfigurationError, DataError


@dataclass(frozen=True)
class EncoderContext:
    """What encoders are made from.

    Attributes:
        config: the data section.
        tokenizer: a ``transformers`` tokenizer; None where rows are only counted.
        max_length: longest row in tokens; None for no limit.
        search_dir: folder of the recipe, for relative files.
    """

    config: DataConfig
    tokenizer: Any
    max_length: int | None = None
    search_dir: Path | str | None = None

    def need_tokenizer(self) -> Any:
        """The tokenizer.

        Raises:
            ConfigurationError: there is none.
        """
        if self.tokenizer is None:
            raise ConfigurationError(
                "This DataModule has no tokenizer: give it one, or pass the module to "
                "a trainer's fit()."
            )
        return self.tokenizer

    @property
    def pad_id(self) -> int:
        """Token that fills rows up: the padding token, else the end token, else 0."""
        tokenizer = self.need_tokenizer()
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(tokenizer, name, None) is not None:
                return getattr(tokenizer, name)
        return 0


class Encoder(Protocol):
    """Reads rows and puts them into batches."""

    def __init__(self, context: EncoderContext) -> None: ...

    def encode(self, row: Any, where: str, idx: int) -> dict[str, Any]:
        """Read and tokenise one row.

        Args:
            row: as the data set has it.
            where: how to name the row in an error.
            idx: its number in the data set.

        Returns:
            An item with at least ``text``, by which training and validation rows are
            compared.

        Raises:
            DataError: the row cannot be used.
        """
        ...

    def collate(self, items: Sequence[Mapping[str, Any]]) -> BatchedDataDict:
        """Make a batch of encoded rows."""
        ...


def padded(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
    """[len(rows), longest] of rows that are filled up on the right with ``value``."""
    width = max(len(row) for row in rows)
    out = torch.full((len(rows), width), value, dtype=dtype)
    for number, row in enumerate(rows):
        out[number, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return out


def token_batch(
    sequences: Sequence[tuple[list[int], list[int], bool]], pad_id: int
) -> dict[str, Tensor]:
    """The columns of a TrainingDatumSpec.

    Args:
        sequences: (token ids, loss mask of the same length, whether it counts) per row.
        pad_id: fills rows up.
    """
    return {
        "input_ids": padded([ids for ids, _, _ in sequences], pad_id, torch.int64),
        "input_lengths": torch.tensor([len(ids) for ids, _, _ in sequences]),
        "token_mask": padded([mask for _, mask, _ in sequences], 0, torch.float32),
        "sample_mask": torch.tensor([float(counts) for _, _, counts in sequences]),
    }


def fitted(
    ids: list[int], mask: list[int], context: EncoderContext, where: str
) -> tuple[list[int], list[int], bool]:
    """A sequence that keeps to the longest length, and whether it counts.

    ``data.overlong`` decides: an error; the beginning alone; or the beginning with no
    part in the loss.

    Raises:
        DataError: it is too long, or nothing of it is trained on.
    """
    if not any(mask[1:]):
        raise DataError(
            f"{where}: nothing to train on: no token of an assistant's message."
        )
    limit = context.max_length
    if limit is None or len(ids) <= limit:
        return ids, mask, True
    if context.config.overlong == "error":
        raise DataError(
            f"{where}: has {len(ids)} tokens, the longest allowed is {limit}. Raise "
            "policy.max_total_sequence_length, remove the row, or set data.overlong to "
            "'truncate' or 'skip'."
        )
    kept = mask[:limit]
    return ids[:limit], kept, context.config.overlong == "truncate" and any(kept[1:])
