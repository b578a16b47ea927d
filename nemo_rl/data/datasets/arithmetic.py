"""Generated sums such as "5 + 2 =": the offline dataset of demonstrations and tests.

Every expression exists once, so training and validation cannot share one.
"""

from __future__ import annotations

from typing import Any

from nemo_rl.data.datasets.split import split_numbers
from nemo_rl.utils.exceptions import DataError

OPERATIONS = "+-*"


class ArithmeticDataset:
    """Expressions of ``num_terms`` numbers below ``10**digits``, with their value.

    Each row is a conversation with one worked example, because a small model answers
    a bare question in prose and then never earns a reward. The worked example is in
    neither split. Row::

        {"messages": [{"role": "system", "content": "Calculator."},
                      {"role": "user", "content": "5 + 2 ="},
                      {"role": "assistant", "content": "7"},
                      {"role": "user", "content": "3 - 8 ="}],
         "answer": "-5", "task_name": "arithmetic"}

    Args:
        split: "train" or "validation".
        num_terms: Numbers in an expression.
        digits: Digits of the largest number.
        ops: Which of + - * to use; * binds stronger.
        num_validation: Expressions held out of training.
        seed: Decides the split and the order.
        size: At most this many rows.

    Raises:
        DataError: The numbers make no dataset.
    """

    default_environment = "exact_match"

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
        """Choose the numbers of the split's expressions; none is written out yet."""
        if num_terms < 2 or digits < 1:
            raise DataError(
                f"num_terms={num_terms}, digits={digits}: an expression needs at least "
                "2 terms of at least 1 digit."
            )
        if not ops or set(ops) - set(OPERATIONS) or len(set(ops)) != len(ops):
            raise DataError(f"ops={ops!r}: expected some of {OPERATIONS}, each once.")
        self._terms, self._base, self._ops = num_terms, 10**digits, ops
        example = self._number_of([(5, 2)[i % 2] for i in range(num_terms)])
        self._example = self._turn(example)
        self._numbers = split_numbers(
            self._base**num_terms * len(ops) ** (num_terms - 1),
            split,
            num_validation=num_validation,
            seed=seed,
            size=size,
            excluded=frozenset({example}),
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._numbers)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        question, answer = self._turn(self._numbers[idx])
        example_question, example_answer = self._example
        return {
            "messages": [
                {"role": "system", "content": "Calculator."},
                {"role": "user", "content": example_question},
                {"role": "assistant", "content": example_answer},
                {"role": "user", "content": question},
            ],
            "answer": answer,
            "task_name": "arithmetic",
        }

    def _number_of(self, terms: list[int]) -> int:
        """Number of the expression of these terms joined by the first operation."""
        number = 0
        for term in terms:
            number = number * self._base + term
        return number * len(self._ops) ** (self._terms - 1)

    def _turn(self, number: int) -> tuple[str, str]:
        """Decode a number into a question and its answer."""
        operations, terms = [], []
        for _ in range(self._terms - 1):
            number, digit = divmod(number, len(self._ops))
            operations.append(self._ops[digit])
        for _ in range(self._terms):
            number, term = divmod(number, self._base)
            terms.append(term)
        terms.reverse()
        text = str(terms[0])
        for operation, term in zip(operations, terms[1:], strict=True):
            text += f" {operation} {term}"
        return f"{text} =", str(_value(terms, operations))


def _value(terms: list[int], operations: list[str]) -> int:
    total, factor = 0, terms[0]
    for operation, term in zip(operations, terms[1:], strict=True):
        if operation == "*":
            factor *= term
        else:
            total += factor
            factor = term if operation == "+" else -term
    return total + factor
