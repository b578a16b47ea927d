"""ValidationRunner: when to validate, and how batches become one number.

Knows an evaluation function and a schedule; no model and no data set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class ValidationResult:
    """Outcome of one validation.

    Attributes:
        metrics: name to number.
        samples: rows with a response (prompt, response, reward, answer) in data order.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)


class ValidationRunner:
    """Runs validations of a training run.

    Args:
        evaluate: one batch to one row per sample that counts.
        batches: makes the validation batches anew; the last may be smaller.
        period: steps between validations, 0 for none.
        at_start: validate before the first step.
        at_end: validate after the last step.
        summarise: all rows to metrics.
    """

    def __init__(
        self,
        evaluate: Callable[[Any], list[dict[str, Any]]],
        batches: Callable[[], Iterable[Any]],
        *,
        period: int,
        at_start: bool = False,
        at_end: bool = False,
        summarise: Callable[[Sequence[dict[str, Any]]], dict[str, float]] | None = None,
    ) -> None:
        self._evaluate, self._batches = evaluate, batches
        self._summarise = summarise or completion_metrics
        self.period, self.at_start, self.at_end = period, at_start, at_end

    def due(self, step: int, *, last: bool = False) -> bool:
        """Whether to validate once ``step`` steps are complete."""
        if step == 0:
            return self.at_start
        if self.period and step % self.period == 0:
            return True
        return last and self.at_end

    def run(self) -> ValidationResult:
        """Evaluate every batch; every row weighs the same, also of a smaller batch."""
        rows = [row for batch in self._batches() for row in self._evaluate(batch)]
        if not rows:
            return ValidationResult()
        samples = [row for row in rows if "response" in row]
        return ValidationResult(self._summarise(rows), samples)


def completion_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over completions.

    Args:
        rows: each with ``reward``, ``response_length`` and ``truncated``.
    """
    return {
        "accuracy": float(np.mean([row["reward"] for row in rows])),
        "response_length": float(np.mean([row["response_length"] for row in rows])),
        "truncated_fraction": float(np.mean([row["truncated"] for row in rows])),
        "num_samples": float(len(rows)),
    }
