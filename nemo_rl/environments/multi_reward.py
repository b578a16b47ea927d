"""MultiRewardEnvironment: the weighted sum of several environments of one turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    last_turn,
)
from nemo_rl.environments.merging import Part, merge_returns
from nemo_rl.utils.exceptions import RewardError


class MultiRewardEnvironment(EnvironmentInterface):
    """Adds up rewards; the mean of each one is logged as ``<name>/reward``.

    Args:
        parts: Name -> environment and weight.
    """

    def __init__(self, parts: Mapping[str, tuple[EnvironmentInterface, float]]) -> None:
        """Keep the parts."""
        super().__init__()
        self.parts = dict(parts)

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Score by every part.

        Raises:
            RewardError: A part wants to go on: sums are of environments of one turn.
        """
        count = len(metadata)
        total = torch.zeros(count)
        metrics: dict[str, Any] = {}
        answers = None
        for name, (environment, weight) in self.parts.items():
            returned = environment.step(message_log_batch, metadata)
            part = Part(f"environment {name}", range(count), returned, f"{name}/")
            merged = merge_returns([part], count)
            if not bool(merged.terminateds.all()):
                raise RewardError(
                    f"env.multi_reward.{name} plays several turns; only environments "
                    "of one turn can be added up."
                )
            total += weight * merged.rewards
            metrics |= merged.metrics or {}
            metrics[f"{name}/reward"] = merged.rewards
            answers = answers or returned.answers
        return last_turn(total, answers=answers, metrics=metrics)

    def shutdown(self) -> None:
        """End what the parts have started."""
        for environment, _ in self.parts.values():
            environment.shutdown()
