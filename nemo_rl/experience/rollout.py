"""RolloutEngine: prompts in, scored completions out, over one turn or several.

Knows a policy that generates and an environment that scores; nothing about advantages
or updates. Generated tokens are kept as they were sampled and never tokenised again.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.experience.conversations import (
    Conversation,
    length_to_stop,
    padded_prompts,
    rollout_columns,
    turn_metrics,
)
from nemo_rl.experience.turns import TurnJoiner, check_observation
from nemo_rl.metrics.rollout import rollout_metrics
from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import RewardError
from nemo_rl.utils.seeding import derive_seed


class RolloutEngine:
    """Lets policy and environment take turns until every conversation has ended.

    A conversation ends when the environment says so, after ``max_turns`` responses,
    or when no further observation and token fit into ``max_total_length``.

    Args:
        policy: has ``generate(batch, greedy)``.
        environment: scores conversations.
        tokenizer: turns responses into text; its end token is left out of the text.
        seed: with a step, a row's position and a turn it decides the samples.
        max_turns: responses per conversation, at most.
        max_total_length: tokens of a conversation, at most; None: no limit here.

    Raises:
        DataError: several turns, and a chat template that rewrites earlier ones.
    """

    def __init__(
        self,
        policy: Any,
        environment: EnvironmentInterface,
        tokenizer: Any,
        *,
        seed: int = 0,
        max_turns: int = 1,
        max_total_length: int | None = None,
    ) -> None:
        self.policy, self.environment = policy, environment
        self.tokenizer, self.seed = tokenizer, seed
        self.max_turns, self.max_total_length = max_turns, max_total_length
        self._joiner = TurnJoiner(tokenizer)
        if max_turns > 1:
            self._joiner.check()

    def run(
        self, batch: BatchedDataDict, *, step: int = 0, greedy: bool = False
    ) -> tuple[BatchedDataDict, dict[str, float]]:
        """Generate and score.

        Args:
            batch: prompt batch of B rows with ``group`` [B] (see ``repeat_prompts``).
            step: the training step, part of every row's sampling seed.
            greedy: take the likeliest token.

        Returns:
            A rollout batch (``data/interfaces.py``) and metrics over its rows.

        Raises:
            RewardError: the environment failed or returned unusable rewards.
        """
        talks = _openings(batch)
        alive = list(range(len(talks)))
        for turn in range(self.max_turns):
            seeds = [self.seed_of(step, row, turn) for row in alive]
            self._respond([talks[row] for row in alive], seeds, greedy)
            alive = self._answer(batch, talks, alive)
            if not alive:
                break
        prompts = {key: value for key, value in batch.items() if key not in _REPLACED}
        rollouts = BatchedDataDict({**prompts, **rollout_columns(talks)})
        metrics = rollout_metrics(
            rollouts["rewards"],
            response_lengths=rollouts["token_mask"].sum(-1),
            truncated=rollouts["truncated"],
            group=rollouts["group"],
        )
        rollouts, extra = self.environment.global_post_process_and_metrics(rollouts)
        return rollouts, {**turn_metrics(talks, self.max_turns), **extra, **metrics}

    def with_policy(self, policy: Any) -> RolloutEngine:
        """Return this engine with another policy that generates."""
        other = copy(self)
        other.policy = policy
        return other

    def seed_of(self, step: int, row: int, turn: int = 0) -> int:
        """Return what decides the samples of a row of a step's batch."""
        later = (turn,) if turn else ()
        return derive_seed(self.seed, "rollout", step, row, *later)

    def _respond(
        self, talks: Sequence[Conversation], seeds: list[int], greedy: bool
    ) -> None:
        """Sample the next response of each conversation."""
        output = self.policy.generate(padded_prompts(talks, seeds), greedy)
        ids, logprobs = output["output_ids"].tolist(), output["logprobs"].tolist()
        ends = output["unpadded_sequence_lengths"].tolist()
        truncated = output["truncated"].tolist()
        versions = None
        if "token_versions" in output:
            versions = output["token_versions"].tolist()
        said = []
        for row, talk in enumerate(talks):
            start, end = len(talk.ids), ends[row]
            # A generator that knows no stop strings of a row samples on after them;
            # what stands before does not depend on that.
            length = length_to_stop(
                ids[row][start:end], talk.stop_strings or (), self._decode
            )
            if length is not None:
                end, truncated[row] = start + length, False
            said.append(ids[row][start:end])
            talk.truncated |= truncated[row]
        texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        for row, talk in enumerate(talks):
            start = len(talk.ids)
            end = start + len(said[row])
            told = versions[row][start:end] if versions else None
            talk.say(said[row], logprobs[row][start:end], texts[row], told)
            talk.state["truncated"] = truncated[row]

    def _answer(
        self, batch: BatchedDataDict, talks: Sequence[Conversation], alive: list[int]
    ) -> list[int]:
        """Let the environment score the responses; the rows that go on."""
        with pulse.doing("environment"):
            returned = self.environment.step(
                [talks[row].messages for row in alive],
                [_metadata(batch, row, talks[row]) for row in alive],
            )
        rewards = self._vector(returned.rewards, "rewards", len(alive))
        for name, values in (returned.metrics or {}).items():
            numbers = self._vector(values, f"metrics[{name!r}]", len(alive))
            for row, value in zip(alive, numbers, strict=True):
                talks[row].count(name, value)
        for row, reward in zip(alive, rewards, strict=True):
            talks[row].reward += reward
        if self.max_turns == 1:
            return []
        over = self._vector(returned.terminateds, "terminateds", len(alive))
        self._check_lengths(returned, len(alive), all(over))
        going_on = []
        for number, row in enumerate(alive):
            talk = talks[row]
            talk.terminated = bool(over[number])
            if not talk.terminated and talk.turns < self.max_turns:
                self._continue(talk, returned, number)
                if not talk.overflowed:
                    going_on.append(row)
        return going_on

    def _continue(
        self, talk: Conversation, returned: EnvironmentReturn, number: int
    ) -> None:
        """Append the observation, unless no token would fit after it."""
        name = type(self.environment).__name__
        message = check_observation(returned.observations[number], name)
        tokens = self._joiner.between(
            [*talk.messages, message],
            prompt=talk.prompt_messages,
            last_token=talk.ids[-1],
        )
        limit = self.max_total_length
        if limit is not None and len(talk.ids) + len(tokens) >= limit:
            talk.overflowed = True
            return
        talk.hear(tokens, message)
        talk.state.update(returned.metadata[number] or {})
        talk.stop_strings = returned.next_stop_strings[number]

    def _vector(self, values: Any, what: str, rows: int) -> list[float]:
        """The values as one number per conversation."""
        numbers = torch.as_tensor(() if values is None else values, dtype=torch.float32)
        if numbers.shape != (rows,):
            raise RewardError(
                f"{type(self.environment).__name__}.step returned {what} of shape "
                f"{list(numbers.shape)} for {rows} conversations"
            )
        return numbers.tolist()

    def _check_lengths(
        self, returned: EnvironmentReturn, rows: int, all_over: bool
    ) -> None:
        for what in ("observations", "metadata", "next_stop_strings"):
            length = len(getattr(returned, what) or ())
            if length != rows and not all_over:
                raise RewardError(
                    f"{type(self.environment).__name__}.step returned {length} {what} "
                    f"for {rows} conversations, some of which go on"
                )

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.batch_decode([tokens], skip_special_tokens=False)[0]


_REPLACED = ("input_ids", "input_lengths")
"""Columns of the prompts that the whole conversations take the place of."""


def _openings(batch: BatchedDataDict) -> list[Conversation]:
    rows = zip(
        batch["input_ids"].tolist(), batch["input_lengths"].tolist(), strict=True
    )
    return [
        Conversation(
            ids=ids[:length],
            messages=list(batch["messages"][row]),
            stop_strings=(batch["row"][row] or {}).get("stop_strings"),
        )
        for row, (ids, length) in enumerate(rows)
    ]


def _metadata(batch: BatchedDataDict, row: int, talk: Conversation) -> dict[str, Any]:
    return {
        "prompt": batch["prompt"][row],
        "answer": batch["answer"][row],
        "row": batch["row"][row],
        "task_name": batch["task_name"][row],
        **talk.state,
    }


def repeat_prompts(batch: BatchedDataDict, times: int) -> BatchedDataDict:
    """Each prompt ``times`` in a row, with ``group`` = its index in the batch."""
    group = torch.arange(batch.size)
    return BatchedDataDict({**batch, "group": group}).repeat_interleave(times)
