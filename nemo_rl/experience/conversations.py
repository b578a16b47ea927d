"""Conversation: what one row of a rollout has said and heard so far, as token ids.

Knows no policy, environment or template.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict

NOT_SAMPLED = -1
"""Version of a token that no weights have sampled."""


@dataclass
class Conversation:
    """One row: ids, which of them were sampled, and what the environment said."""

    ids: list[int]
    """Token ids of prompt, responses and observations."""
    messages: list[dict[str, Any]]
    """The same as messages."""
    stop_strings: list[str] | None = None
    """What ends the next response, beside the policy's own stops."""
    prompt_length: int = 0
    """Tokens before the first response."""
    prompt_messages: int = 0
    """Messages before the first response."""
    mask: list[float] = field(default_factory=list)
    """1 where a token was sampled."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probability at sampling; 0 elsewhere."""
    versions: list[int] = field(default_factory=list)
    """Version of the weights that sampled a token; -1 elsewhere."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the environment wants back at the next turn."""
    reward: float = 0.0
    """Sum over the turns."""
    turns: int = 0
    """Responses so far."""
    truncated: bool = False
    """The generator ran out of tokens in some turn."""
    terminated: bool = False
    """The environment ended the conversation."""
    overflowed: bool = False
    """An observation did not fit, which ended it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers of the environment, summed over turns."""

    def __post_init__(self) -> None:
        self.prompt_length, self.prompt_messages = len(self.ids), len(self.messages)
        self.mask = [0.0] * len(self.ids)
        self.logprobs = [0.0] * len(self.ids)
        self.versions = [NOT_SAMPLED] * len(self.ids)

    def say(
        self,
        tokens: list[int],
        logprobs: list[float],
        text: str,
        versions: list[int] | None = None,
    ) -> None:
        """Append a sampled response; None where the generator tells no versions."""
        self.ids += tokens
        self.mask += [1.0] * len(tokens)
        self.logprobs += logprobs
        self.versions += versions or [NOT_SAMPLED] * len(tokens)
        self.messages = [*self.messages, {"role": "assistant", "content": text}]
        self.turns += 1

    def hear(self, tokens: list[int], message: dict[str, str]) -> None:
        """Append an observation and what the template puts around it."""
        self.ids += tokens
        self.mask += [0.0] * len(tokens)
        self.logprobs += [0.0] * len(tokens)
        self.versions += [NOT_SAMPLED] * len(tokens)
        self.messages = [*self.messages, message]

    def count(self, name: str, value: float) -> None:
        """Add to a metric; a NaN says nothing."""
        if not math.isnan(value):
            self.metrics[name] = self.metrics.get(name, 0.0) + value


def padded_prompts(talks: Sequence[Conversation], seeds: list[int]) -> BatchedDataDict:
    """Return the conversations as prompts of a generation, right-padded with 0."""
    lengths = [len(talk.ids) for talk in talks]
    prompts: dict[str, Any] = {
        "input_ids": _padded([talk.ids for talk in talks], torch.int64),
        "input_lengths": torch.tensor(lengths),
        "sampling_seed": torch.tensor(seeds),
    }
    if any(talk.stop_strings for talk in talks):
        prompts["stop_strings"] = [talk.stop_strings for talk in talks]
    return BatchedDataDict(prompts)


def rollout_columns(talks: Sequence[Conversation]) -> dict[str, Any]:
    """Return the columns that a rollout adds to its prompts (``RolloutBatch``)."""
    columns = {
        "input_ids": _padded([talk.ids for talk in talks], torch.int64),
        "input_lengths": torch.tensor([len(talk.ids) for talk in talks]),
        "prompt_lengths": torch.tensor([talk.prompt_length for talk in talks]),
        "token_mask": _padded([talk.mask for talk in talks], torch.float32),
        "generation_logprobs": _padded([t.logprobs for t in talks], torch.float32),
        "response": [_last_response(talk) for talk in talks],
        "conversation": [talk.messages[talk.prompt_messages :] for talk in talks],
        "num_turns": torch.tensor([talk.turns for talk in talks]),
        "truncated": torch.tensor([talk.truncated for talk in talks]),
        "sample_mask": torch.ones(len(talks)),
        "rewards": torch.tensor([talk.reward for talk in talks]),
    }
    if any(max(talk.versions) != NOT_SAMPLED for talk in talks):
        versions = [talk.versions for talk in talks]
        columns["token_versions"] = _padded(versions, torch.int64, NOT_SAMPLED)
    return columns


def turn_metrics(talks: Sequence[Conversation], max_turns: int) -> dict[str, float]:
    """Return what the environment counted, and of several turns how they ended."""
    metrics: dict[str, float] = {}
    for name in sorted({name for talk in talks for name in talk.metrics}):
        values = [talk.metrics[name] for talk in talks if name in talk.metrics]
        metrics[name] = math.fsum(values) / len(values)
    if max_turns == 1 or not talks:
        return metrics
    turns = [talk.turns for talk in talks]
    return metrics | {
        "turns": sum(turns) / len(turns),
        "turns_max": float(max(turns)),
        "terminated_fraction": sum(t.terminated for t in talks) / len(talks),
        "overflowed_fraction": sum(t.overflowed for t in talks) / len(talks),
    }


def length_to_stop(
    tokens: list[int], stops: Sequence[str], decode: Callable[[list[int]], str]
) -> int | None:
    """Return how many tokens it takes until their text has a stop string, if ever.

    Args:
        tokens: a response.
        stops: any of these ends it.
        decode: token ids to text.
    """

    def stopped(count: int) -> bool:
        text = decode(tokens[:count])
        return any(stop in text for stop in stops)

    low, high = 0, len(tokens)
    if not stops or not stopped(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if stopped(middle) else (middle, high)
    return high


def _last_response(talk: Conversation) -> str:
    said = [m["content"] for m in talk.messages if m["role"] == "assistant"]
    return said[-1] if talk.turns else ""


def _padded(rows: list[list[Any]], dtype: torch.dtype, filler: int = 0) -> torch.Tensor:
    """[B, S] of the longest row, the filler after the end of the others."""
    width = max((len(row) for row in rows), default=0)
    padded = [row + [filler] * (width - len(row)) for row in rows]
    return torch.tensor(padded, dtype=dtype)
