"""Sums to learn from offline: worked conversations, and right against wrong answers.

The expressions, their order and their split are those of `arithmetic.py`.
"""

from __future__ import annotations

import random
from typing import Any

from nemo_rl.data.datasets.arithmetic import ArithmeticDataset
from nemo_rl.utils.seeding import derive_seed

_SYSTEM = {"role": "system", "content": "Calculator."}


class ArithmeticChatDataset:
    """Conversations of a sum and its worked answer, for supervised fine-tuning.

    Row::

        {"messages": [{"role": "system", "content": "Calculator."},
                      {"role": "user", "content": "3 + 4 - 9 ="},
                      {"role": "assistant", "content": "7 - 9 = -2"}],
         "answer": "-2", "task_name": "arithmetic"}

    Args:
        split: "train" or "validation".
        num_terms: Numbers in an expression.
        digits: Digits of the largest number.
        ops: Which of + - * to use; * binds stronger.
        num_validation: Expressions held out of training.
        seed: Decides the split and the order.
        size: At most this many rows.
        worked: Write every step; otherwise the value alone.

    Raises:
        DataError: The numbers make no dataset.
    """

    def __init__(
        self,
        split: str = "train",
        num_terms: int = 2,
        *,
        digits: int = 1,
        ops: str = "+-",
        num_validation: int = 48,
        seed: int = 0,
        size: int | None = None,
        worked: bool = True,
    ) -> None:
        """Choose the expressions."""
        self._worked = worked
        self._sums = ArithmeticDataset(
            split,
            num_terms,
            digits=digits,
            ops=ops,
            num_validation=num_validation,
            seed=seed,
            size=size,
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._sums)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        row = self._sums[idx]
        question = row["messages"][-1]
        said = steps(question["content"]) if self._worked else row["answer"]
        return {
            "messages": [_SYSTEM, question, {"role": "assistant", "content": said}],
            "answer": row["answer"],
            "task_name": row["task_name"],
        }


class ArithmeticPreferencesDataset:
    """Pairs of a right and a wrong value of a sum, for preference optimisation.

    Row::

        {"prompt": [{"role": "system", "content": "Calculator."},
                    {"role": "user", "content": "5 + 2 ="}],
         "chosen": "7", "rejected": "9", "task_name": "arithmetic"}

    Args:
        split: "train" or "validation".
        num_terms: Numbers in an expression.
        digits: Digits of the largest number.
        ops: Which of + - * to use; * binds stronger.
        num_validation: Expressions held out of training.
        seed: Decides the split, the order and the wrong values.
        size: At most this many rows.

    Raises:
        DataError: The numbers make no dataset.
    """

    def __init__(
        self,
        split: str = "train",
        num_terms: int = 2,
        *,
        digits: int = 1,
        ops: str = "+-",
        num_validation: int = 48,
        seed: int = 0,
        size: int | None = None,
    ) -> None:
        """Choose the expressions."""
        self._seed = seed
        self._sums = ArithmeticDataset(
            split,
            num_terms,
            digits=digits,
            ops=ops,
            num_validation=num_validation,
            seed=seed,
            size=size,
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._sums)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        row = self._sums[idx]
        question = row["messages"][-1]
        # By the question, not by its place: the same in every size of the dataset.
        generator = random.Random(derive_seed(self._seed, "wrong", question["content"]))
        off = generator.choice([-1, 1]) * generator.randint(1, 9)
        return {
            "prompt": [_SYSTEM, question],
            "chosen": row["answer"],
            "rejected": str(int(row["answer"]) + off),
            "task_name": row["task_name"],
        }


def steps(question: str) -> str:
    """Work a sum out, one operation at a time, products first.

    Example:
        >>> steps("2 + 3 * 4 - 1 =")
        '2 + 12 - 1 = 14 - 1 = 13'
    """
    tokens = question.removesuffix("=").split()
    written = []
    while len(tokens) > 1:
        at = tokens.index("*") if "*" in tokens else 1
        left, right = int(tokens[at - 1]), int(tokens[at + 1])
        value = {"+": left + right, "-": left - right, "*": left * right}[tokens[at]]
        tokens[at - 1 : at + 2] = [str(value)]
        written.append(" ".join(tokens))
    return " = ".join(written)
