"""MathEnvironment: grades mathematical answers in processes that may hang or crash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.config.environment import MathEnvConfig
from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    scored_turn,
)
from nemo_rl.environments.line_workers import LineWorkers
from nemo_rl.utils.exceptions import RewardError


class MathEnvironment(EnvironmentInterface):
    r"""Rewards 1.0 for a response whose answer equals the row's, else 0.0.

    ``math_grading`` says where in a response the answer is looked for, and compares
    by math-verify: ``\frac{1}{2}`` equals ``0.5``. An answer that cannot be graded
    within ``timeout_s`` scores 0 and counts in the metric ``grading_failed``; a
    response without an answer counts in ``no_answer``.

    Args:
        config: The fields of ``env.math``.
    """

    def __init__(self, config: MathEnvConfig | Mapping[str, Any] | None = None) -> None:
        """Remember what to start; processes start with the first step."""
        section = MathEnvConfig.from_mapping(config or {})
        super().__init__(section.to_dict())
        self._workers = LineWorkers(
            "nemo_rl.environments.math_grading:grade",
            section.num_workers,
            section.timeout_s,
        )

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Grade the last message of every conversation; all are over.

        Raises:
            ConfigurationError: math-verify is not installed.
            RewardError: A row has no answer.
        """
        requests = []
        for log, meta in zip(message_log_batch, metadata, strict=True):
            if meta.get("answer") is None:
                raise RewardError(
                    "the row has no answer to compare with; set data.answer_key to "
                    f"the field that holds it. Prompt: {meta.get('prompt')!r:.200}"
                )
            requests.append(
                {"response": log[-1]["content"], "answer": str(meta["answer"])}
            )
        found = [outcome.value for outcome in self._workers.map(requests)]
        return scored_turn(found, failed="grading_failed")

    def shutdown(self) -> None:
        """End the processes."""
        self._workers.close()
