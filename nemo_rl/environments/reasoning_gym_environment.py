"""ReasoningGymEnvironment: scores by the task that made the row's problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.config.environment import ReasoningGymEnvConfig
from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    scored_turn,
)
from nemo_rl.environments.line_workers import LineWorkers
from nemo_rl.utils.exceptions import RewardError


class ReasoningGymEnvironment(EnvironmentInterface):
    """Scores the rows of the data set ``reasoning_gym``.

    The answer is what stands in the last <answer> tags. Scorers give a little for an
    answer that is hidden in prose; unless ``partial_credit``, only a full score
    counts. Metrics: ``scoring_failed`` and ``no_answer``.

    Args:
        config: The fields of ``env.reasoning_gym``.
    """

    def __init__(
        self, config: ReasoningGymEnvConfig | Mapping[str, Any] | None = None
    ) -> None:
        """Remember what to start; processes start with the first step."""
        section = ReasoningGymEnvConfig.from_mapping(config or {})
        super().__init__(section.to_dict())
        self._how = {
            "partial_credit": section.partial_credit,
            "require_tags": section.require_tags,
        }
        self._workers = LineWorkers(
            "nemo_rl.environments.reasoning_gym_scoring:score",
            section.num_workers,
            section.timeout_s,
        )

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Score the last message of every conversation; all are over.

        Raises:
            ConfigurationError: reasoning_gym is not installed.
            RewardError: A row is not of the data set ``reasoning_gym``.
        """
        requests = []
        for log, meta in zip(message_log_batch, metadata, strict=True):
            row = meta.get("row") or {}
            if "problem" not in row:
                raise RewardError(
                    "The environment reasoning_gym scores rows of the data set of that "
                    f"name only; this one has the fields {sorted(row)}."
                )
            requests.append(
                {
                    "response": log[-1]["content"],
                    "problem": row["problem"],
                    "question": row["prompt"],
                    **self._how,
                }
            )
        found = [outcome.value for outcome in self._workers.map(requests)]
        return scored_turn(found, failed="scoring_failed")

    def shutdown(self) -> None:
        """End the processes."""
        self._workers.close()
