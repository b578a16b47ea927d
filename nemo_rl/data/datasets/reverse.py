"""Digits to be written backwards, "1234>" to "4321": a task a tiny model can learn."""

from __future__ import annotations

from typing import Any

from nemo_rl.data.datasets.split import split_numbers
from nemo_rl.utils.exceptions import DataError


class ReverseDigitsDataset:
    """Every string of ``num_digits`` digits once; rows are plain prompts.

    Row: ``{"prompt": "1234>", "answer": "4321", "task_name": "reverse_digits"}``.

    Args:
        split: "train" or "validation".
        num_digits: Length of the string.
        num_validation: Strings held out of training.
        seed: Decides the split and the order.
        size: At most this many rows.

    Raises:
        DataError: The numbers make no dataset.
    """

    default_environment = "exact_match"

    def __init__(
        self,
        split: str = "train",
        num_digits: int = 4,
        *,
        num_validation: int = 256,
        seed: int = 0,
        size: int | None = None,
    ) -> None:
        """Choose the strings of the split."""
        if num_digits < 1:
            raise DataError(f"num_digits={num_digits}: expected at least 1.")
        self._digits = num_digits
        self._numbers = split_numbers(
            10**num_digits,
            split,
            num_validation=num_validation,
            seed=seed,
            size=size,
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._numbers)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        text = f"{self._numbers[idx]:0{self._digits}d}"
        return {
            "prompt": f"{text}>",
            "answer": text[::-1],
            "task_name": "reverse_digits",
        }
