"""What the answers of a batch say: a row of each, its vote, the numbers of them all.

Knows no policy and no data set.
"""

from __future__ import annotations

import re
from typing import Any

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.evals.config import EvalConfig
from nemo_rl.evals.statistics import Estimate, PromptScores, summarise
from nemo_rl.experience.recorder import rollout_rows


class Listener(EnvironmentInterface):
    """Passes everything on, and keeps what the environment reads out of responses.

    Attributes:
        answers: of the last turn, one per response; None where none were read.
    """

    def __init__(self, environment: EnvironmentInterface) -> None:
        super().__init__()
        self._environment = environment
        self.answers: list[str | None] | None = None

    def step(self, message_log_batch: Any, metadata: Any) -> EnvironmentReturn:
        """Score as the environment does."""
        found = self._environment.step(message_log_batch, metadata)
        self.answers = found.answers
        return found

    def shutdown(self) -> None:
        """End what the environment has started, if it can."""
        # A user's own need not be a subclass of ours.
        end = getattr(self._environment, "shutdown", None)
        if end is not None:
            end()

    def global_post_process_and_metrics(self, batch: BatchedDataDict) -> Any:
        """Look at the whole batch as the environment does."""
        return self._environment.global_post_process_and_metrics(batch)


def answer_rows(
    rollouts: BatchedDataDict, answers: list[str | None] | None, section: EvalConfig
) -> list[dict[str, Any]]:
    """One row per answer.

    Args:
        rollouts: of one batch.
        answers: what the environment read out of the responses, if it read anything;
            of several turns only the last response is looked at.
        section: the eval section.
    """
    rows = rollout_rows(rollouts)
    for number, row in enumerate(rows):
        del row["group"]
        row["idx"] = int(rollouts["idx"][number])
        row["sample"] = number % section.num_samples
        row["right"] = row["reward"] >= section.threshold
        row["vote"] = vote_of(row["response"], section.answer_pattern)
        if section.answer_pattern is None and answers and section.max_turns == 1:
            row["vote"] = answers[number]
    return rows


def vote_of(response: str, pattern: str | None) -> str | None:
    """What an answer says; None where it says nothing."""
    if pattern is None:
        return response.strip() or None
    matches = list(re.finditer(pattern, response))
    if not matches:
        return None
    last = matches[-1]
    found = last[1] if last.re.groups else last[0]
    return found.strip() if found is not None else None


def estimates(rows: list[dict[str, Any]], section: EvalConfig) -> dict[str, Estimate]:
    """The numbers of a whole evaluation; see ``statistics.summarise``."""
    scores = []
    for start in range(0, len(rows), section.num_samples):
        prompt = rows[start : start + section.num_samples]
        scores.append(
            PromptScores(
                [row["reward"] for row in prompt],
                [row["right"] for row in prompt],
                [row["vote"] for row in prompt],
            )
        )
    return summarise(
        scores, section.ks, confidence=section.confidence, seed=section.seed
    )
