"""EnvironmentInterface: what scores a batch of conversations, for one turn or many.

Knows nothing about generation or training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from nemo_rl.distributed.batched_data_dict import BatchedDataDict


class EnvironmentReturn(NamedTuple):
    """What an environment answers to B conversations.

    Example of two finished ones, one right: ``EnvironmentReturn(observations=[],
    metadata=[None, None], next_stop_strings=[None, None], rewards=tensor([1., 0.]),
    terminateds=tensor([True, True]), answers=None)``.
    """

    observations: list[dict[str, str]]
    """[B] messages ({"role": "user", "content": ...}) that continue the conversations;
    those of ended ones are not looked at. Empty where all have ended."""
    metadata: list[dict[str, Any] | None]
    """Per conversation, laid over the metadata of its next turn."""
    next_stop_strings: list[list[str] | None]
    """Per conversation, stop strings of its next turn."""
    rewards: torch.Tensor
    """[B] float32."""
    terminateds: torch.Tensor
    """[B] bool; the conversation is over."""
    answers: list[str | None] | None
    """What was read out of the responses, if anything was."""
    metrics: dict[str, torch.Tensor] | None = None
    """Name -> [B] float32; summed over turns, logged as mean over conversations."""


def last_turn(
    rewards: torch.Tensor | Sequence[float],
    *,
    answers: list[str | None] | None = None,
    metrics: Mapping[str, Sequence[float]] | None = None,
) -> EnvironmentReturn:
    """Return B rewards of conversations that are over.

    Args:
        rewards: [B].
        answers: What was read out of the responses.
        metrics: Name -> [B] numbers.
    """
    import torch

    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    count = len(rewards)
    return EnvironmentReturn(
        observations=[],
        metadata=[None] * count,
        next_stop_strings=[None] * count,
        rewards=rewards,
        terminateds=torch.ones(count, dtype=torch.bool),
        answers=answers,
        metrics={
            name: torch.as_tensor(values, dtype=torch.float32)
            for name, values in (metrics or {}).items()
        },
    )


def scored_turn(
    found: Sequence[tuple[float, str | None] | None], *, failed: str
) -> EnvironmentReturn:
    """``last_turn`` of scores, each with the answer that was read out.

    Args:
        found: (score, answer or None) of each conversation; None where scoring
            failed, which counts as 0.
        failed: metric of those.
    """
    scores = [(0.0, None) if one is None else one for one in found]
    return last_turn(
        [score for score, _ in scores],
        answers=[answer for _, answer in scores],
        metrics={
            failed: [one is None for one in found],
            "no_answer": [one is not None and one[1] is None for one in found],
        },
    )


class EnvironmentInterface(ABC):
    """Base of a user's environment.

    A class whose ``step`` takes one action is wrapped by ``GymEnvironment``.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """Keep the environment's own settings."""
        self.config = dict(config or {})

    @abstractmethod
    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Score B conversations whose last message is the assistant's.

        Args:
            message_log_batch: Conversations as lists of {"role", "content"}.
            metadata: Per conversation: "prompt" (the rendered text), "answer", "row",
                "task_name", "truncated", and what its last turn returned.
        """

    def global_post_process_and_metrics(
        self, batch: BatchedDataDict
    ) -> tuple[BatchedDataDict, dict[str, float]]:
        """Look at the whole rollout batch once; return it and metrics of its own."""
        return batch, {}

    def shutdown(self) -> None:
        """End what the environment has started; a later step may start it again."""
        return
