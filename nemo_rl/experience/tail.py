"""Over-sampling: more prompts are sampled than a step takes; the rest goes on later.

Submits to a ``GenerationStream`` and keeps what unfinished responses have so far. Knows
no threads and no weights, only their versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.conversations import NOT_SAMPLED
from nemo_rl.experience.schedule import FirstToEnd
from nemo_rl.utils.seeding import derive_seed

_POLL_S = 0.5


@dataclass
class Response:
    """A response, whole or begun."""

    seed: int
    """Of its first token."""
    tokens: list[int] = field(default_factory=list)
    """What was sampled."""
    logprobs: list[float] = field(default_factory=list)
    """Of each token."""
    versions: list[int] = field(default_factory=list)
    """Updates that the weights of each token had seen."""
    reason: str | None = None
    """Why it ended; None: it has not."""

    def add(self, result: GenerationResult, updates: Callable[[int], int]) -> None:
        """Append what an engine has sampled."""
        self.tokens += result.token_ids
        self.logprobs += result.logprobs
        self.versions += [updates(version) for version in result.versions]
        self.reason = None if result.finish_reason == "abort" else result.finish_reason

    def forget(self) -> None:
        """Start anew."""
        self.tokens, self.logprobs, self.versions = [], [], []
        self.reason = None


@dataclass
class Group:
    """A prompt and its responses."""

    prompt: BatchedDataDict
    """One row."""
    responses: list[Response]
    """One per generation."""

    @property
    def oldest(self) -> int | None:
        """Version of the oldest token; None where there is none."""
        versions = [version for r in self.responses for version in r.versions]
        return min(versions, default=None)

    @property
    def ended(self) -> bool:
        """Whether every response has ended."""
        return all(response.reason for response in self.responses)


@dataclass(frozen=True)
class Limits:
    """How long responses and sequences are at most, in tokens."""

    new: int
    total: int


class Tail:
    """Samples groups until a step is full.

    Args:
        stream: a ``GenerationStream``.
        limits: lengths.
        updates: the generator's version numbers as updates made.
        check: called between polls; raises where the run has ended.

    Attributes:
        counts: aborted, continued and restarted responses of the last batch.
    """

    def __init__(
        self,
        stream: Any,
        limits: Limits,
        *,
        updates: Callable[[int], int],
        check: Callable[[], None],
    ) -> None:
        self._stream, self._limits = stream, limits
        self._updates, self._check = updates, check
        self.counts: dict[str, float] = {}

    def renew(self, groups: Sequence[Group], oldest: int) -> set[int]:
        """Start responses anew that hold tokens older than allowed.

        Returns:
            The positions of their groups.
        """
        renewed, restarted = set(), 0
        for number, group in enumerate(groups):
            for response in group.responses:
                if response.versions and min(response.versions) < oldest:
                    response.forget()
                    renewed.add(number)
                    restarted += 1
        begun = [r for g in groups for r in g.responses if r.tokens and not r.reason]
        self.counts = {
            "restarted_responses": float(restarted),
            "continued_responses": float(len(begun)),
        }
        return renewed

    def gather(
        self, name: str, groups: Sequence[Group], first: FirstToEnd, order: list[int]
    ) -> None:
        """Sample until ``first`` is full, then abort the rest.

        Args:
            name: distinguishes the requests of this batch.
            groups: carried ones at the front; their responses grow.
            first: told which have ended.
            order: of starting, positions in ``groups``.
        """
        waiting: dict[str, tuple[int, Response]] = {}
        requests = []
        for number in order:
            group = groups[number]
            for row, response in enumerate(group.responses):
                if not response.reason:
                    request = self._request(f"{name}/{number}/{row}", group, response)
                    requests.append(request)
                    waiting[request.id] = number, response
        for number, group in enumerate(groups):
            if group.ended:
                first.end(number)
        self._stream.submit(requests)
        try:
            while not first.full:
                self._check()
                for result in self._stream.poll(list(waiting), _POLL_S):
                    number, response = waiting.pop(result.id)
                    response.add(result, self._updates)
                    if groups[number].ended:
                        first.end(number)
        finally:
            left = self._stream.abort(list(waiting)) if waiting else []
        for result in left:
            waiting[result.id][1].add(result, self._updates)
        begun = [response for _, response in waiting.values() if not response.reason]
        self.counts["aborted_responses"] = float(len(begun))

    def _request(
        self, name: str, group: Group, response: Response
    ) -> GenerationRequest:
        length = int(group.prompt["input_lengths"][0])
        seed = response.seed
        if response.tokens:
            # The first numbers of the seed are used up: a token drawn from them
            # again would depend on those before it.
            seed = derive_seed(seed, "continued", len(response.tokens))
        row = group.prompt["row"][0] or {}
        return GenerationRequest(
            id=name,
            prompt_ids=group.prompt["input_ids"][0, :length].tolist(),
            seed=seed,
            max_new_tokens=min(self._limits.new, self._limits.total - length),
            stop_strings=tuple(row.get("stop_strings") or ()),
            begun_ids=list(response.tokens),
        )


class Answered:
    """A policy that gives responses which are there already.

    Args:
        responses: one per row of the batch that will be asked for.
    """

    def __init__(self, responses: Sequence[Response]) -> None:
        self._responses = responses

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """A ``GenerationOutputSpec`` batch of the responses."""
        lengths = data["input_lengths"]
        sizes = torch.tensor([len(r.tokens) for r in self._responses])
        shape = (len(lengths), int((lengths + sizes).max()))
        ids = torch.zeros(shape, dtype=torch.int64)
        logprobs = torch.zeros(shape)
        versions = torch.full(shape, NOT_SAMPLED)
        for row, response in enumerate(self._responses):
            start = int(lengths[row])
            end = start + len(response.tokens)
            ids[row, :start] = data["input_ids"][row, :start]
            ids[row, start:end] = torch.tensor(response.tokens)
            logprobs[row, start:end] = torch.tensor(response.logprobs)
            versions[row, start:end] = torch.tensor(response.versions)
        return BatchedDataDict(
            {
                "output_ids": ids,
                "logprobs": logprobs,
                "token_versions": versions,
                "generation_lengths": sizes,
                "unpadded_sequence_lengths": lengths + sizes,
                "truncated": torch.tensor(
                    [r.reason == "length" for r in self._responses]
                ),
            }
        )


def new_groups(
    prompts: BatchedDataDict, times: int, seed_of: Callable[[int], int]
) -> list[Group]:
    """Groups of prompts that nothing is sampled for yet.

    Args:
        prompts: P rows.
        times: responses per prompt (G).
        seed_of: seed of a row of the repeated batch, 0 .. P * G - 1.
    """
    return [
        Group(
            prompts.slice(number, number + 1),
            [Response(seed_of(number * times + row)) for row in range(times)],
        )
        for number in range(prompts.size)
    ]
