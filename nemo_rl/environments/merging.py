"""Parts of an EnvironmentReturn put together again; knows no environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from nemo_rl.environments.interfaces import EnvironmentReturn
from nemo_rl.utils.exceptions import RewardError


class Part(NamedTuple):
    """What one environment, or one worker, answered to some of the conversations."""

    name: str
    """What to call it in an error."""
    rows: Sequence[int]
    """Which conversations these were."""
    returned: EnvironmentReturn
    """The answer, in the order of the rows."""
    prefix: str = ""
    """Put before the names of its metrics."""


def merge_returns(parts: Sequence[Part], count: int) -> EnvironmentReturn:
    """Return the answer to ``count`` conversations from the answers to some each.

    Raises:
        RewardError: A part answered to another number of conversations.
    """
    observations: list[Any] = [{"role": "user", "content": ""}] * count
    metadata: list[Any] = [None] * count
    stops: list[Any] = [None] * count
    answers: list[Any] = [None] * count
    rewards = torch.zeros(count)
    over = torch.ones(count, dtype=torch.bool)
    metrics: dict[str, torch.Tensor] = {}
    for part in parts:
        rows, returned = list(part.rows), part.returned
        rewards[rows] = _vector(part, "rewards", returned.rewards)
        ended = _vector(part, "terminateds", returned.terminateds).bool()
        over[rows] = ended
        for column, what in (
            (observations, "observations"),
            (metadata, "metadata"),
            (stops, "next_stop_strings"),
            (answers, "answers"),
        ):
            values = getattr(returned, what)
            may_be_missing = what == "answers" or bool(ended.all())
            if not values and may_be_missing:
                continue
            if len(values or ()) != len(rows):
                raise _wrong(part, what, len(values or ()))
            for row, value in zip(rows, values, strict=True):
                column[row] = value
        for name, values in (returned.metrics or {}).items():
            column = metrics.setdefault(
                part.prefix + name, torch.full((count,), math.nan)
            )
            column[rows] = _vector(part, f"metrics[{name!r}]", values)
    return EnvironmentReturn(
        observations=observations,
        metadata=metadata,
        next_stop_strings=stops,
        rewards=rewards,
        terminateds=over,
        answers=answers,
        metrics=metrics,
    )


def _vector(part: Part, what: str, values: Any) -> torch.Tensor:
    numbers = torch.as_tensor(() if values is None else values, dtype=torch.float32)
    if numbers.shape != (len(part.rows),):
        raise _wrong(part, what, len(numbers) if numbers.dim() else 1)
    return numbers


def _wrong(part: Part, what: str, found: int) -> RewardError:
    return RewardError(
        f"{part.name}.step returned {found} {what} for {len(part.rows)} conversations"
    )
