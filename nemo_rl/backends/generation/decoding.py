"""The loop that turns next-token logits into responses, whichever model gives them.

Rows are decoded together. A shorter prompt is fed token by token while longer ones are
still being read, so every row occupies columns 0..t without a gap: padding can neither
shift positions nor be attended to. Knows lengths, stops and seeds; no model, no ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.sampling import sample, uniforms
from nemo_rl.utils import pulse

Decode = Callable[[list[int]], str]


class Steps(Protocol):
    """Forward passes over one batch of rows, and the choice made after each."""

    def logits(self, ids: Tensor, start: int) -> Tensor | None:
        """Logits [b, V] fp32 after the last column; None where a rank has none.

        Args:
            ids: [b, t] int64 on the CPU, all columns so far.
            start: columns that earlier calls have read.
        """
        ...

    def agree(self, chosen: Tensor | None, rows: int) -> Tensor:
        """What was chosen, [2, rows] float64, as every rank of the replica knows it.

        Args:
            chosen: token ids and log-probs; None where a rank had no logits.
            rows: of the batch.
        """
        ...


def decode_batches(
    prompts: Mapping[str, Any],
    params: SamplingParams,
    decode: Decode | None,
    begin: Callable[[int, int], Steps],
) -> dict[str, Tensor]:
    """Sample one response per row, rows of similar length together.

    Args:
        prompts: see ``GenerationBackend.generate``.
        params: see there.
        decode: ids to text, for stop strings.
        begin: (rows, columns) -> the forward passes of a batch.

    Returns:
        See ``GenerationBackend.generate``.
    """
    lengths = prompts["input_lengths"]
    order = torch.argsort(lengths, stable=True)
    size = params.batch_size or max(len(order), 1)
    outputs = _empty_outputs(prompts, params)
    for rows in order.split(size) if len(order) else ():
        loop = _DecodeLoop(params, decode, begin)
        result = loop.run(
            prompts["input_ids"][rows], lengths[rows], prompts["sampling_seed"][rows]
        )
        for key, value in result.items():
            if value.dim() == 2:
                outputs[key][rows, : value.shape[1]] = value
            else:
                outputs[key][rows] = value
    longest = int(outputs["unpadded_sequence_lengths"].max()) if len(order) else 0
    for key in ("output_ids", "logprobs"):
        outputs[key] = outputs[key][:, :longest]
    return outputs


def _empty_outputs(
    prompts: Mapping[str, Any], params: SamplingParams
) -> dict[str, Tensor]:
    rows, columns = prompts["input_ids"].shape
    shape = (rows, columns + params.max_new_tokens)
    return {
        "output_ids": torch.zeros(shape, dtype=torch.int64),
        "logprobs": torch.zeros(shape, dtype=torch.float32),
        "unpadded_sequence_lengths": torch.zeros(rows, dtype=torch.int64),
        "generation_lengths": torch.zeros(rows, dtype=torch.int64),
        "truncated": torch.zeros(rows, dtype=torch.bool),
    }


class _DecodeLoop:
    """Decode one batch of rows to the end."""

    def __init__(
        self,
        params: SamplingParams,
        decode: Decode | None,
        begin: Callable[[int, int], Steps],
    ) -> None:
        self.params, self.decode, self.begin = params, decode, begin
        self.stops = torch.tensor(params.stop_token_ids, dtype=torch.int64)

    def run(self, ids: Tensor, lengths: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """Sample for prompts [b, S] of the given lengths [b]; all on the CPU."""
        params = self.params
        limit = (lengths + params.max_new_tokens).clamp(max=params.max_total_length)
        columns = int(limit.max())
        self.ids = torch.zeros(len(ids), columns, dtype=torch.int64)
        width = min(ids.shape[1], columns)
        self.ids[:, :width] = ids[:, :width]
        self.logprobs = torch.zeros(len(ids), columns)
        self.ends = limit.clone()
        self.prompt_ends = lengths
        self.done = limit <= lengths
        self.stopped = torch.zeros(len(ids), dtype=torch.bool)
        noise = uniforms(seeds, params.max_new_tokens)

        start, end = 0, int(lengths.min())
        steps = self.begin(len(ids), columns)
        while end < columns and not bool(self.done.all()):
            pulse.beat()
            logits = steps.logits(self.ids[:, :end], start)
            turn = (end - lengths).clamp(min=0, max=params.max_new_tokens - 1)
            uniform = noise.gather(1, turn[:, None])[:, 0]
            tokens, logprobs = self._next(steps, logits, uniform)
            self._append(end, tokens, logprobs, lengths <= end)
            start, end = end, end + 1
        self._clear_after_ends()
        return {
            "output_ids": self.ids,
            "logprobs": self.logprobs,
            "unpadded_sequence_lengths": self.ends,
            "generation_lengths": self.ends - lengths,
            "truncated": ~self.stopped,
        }

    def _append(
        self, column: int, tokens: Tensor, logprobs: Tensor, past_prompt: Tensor
    ) -> None:
        """Write the new column where a row is past its prompt and not done."""
        active = past_prompt & ~self.done
        for values, new in ((self.ids, tokens), (self.logprobs, logprobs)):
            values[:, column] = torch.where(active, new, values[:, column])
        hit = active & torch.isin(tokens, self.stops)
        if self.params.stop_strings and self.decode is not None:
            hit |= active & self._ends_with_stop_string(column, active)
        self.stopped |= hit
        self.ends[hit] = column + 1
        self.done |= hit | (self.ends <= column + 1)

    def _ends_with_stop_string(self, column: int, active: Tensor) -> Tensor:
        hits = torch.zeros_like(active)
        # A token adds at least one byte, so the tail holds any new match.
        tail = max(len(s.encode()) for s in self.params.stop_strings) + 1
        for row in active.nonzero()[:, 0].tolist():
            first = max(int(self.prompt_ends[row]), column + 1 - tail)
            tokens = self.ids[row, first : column + 1].tolist()
            text = self.decode(tokens)  # pyrefly: ignore[not-callable]
            hits[row] = any(stop in text for stop in self.params.stop_strings)
        return hits

    def _clear_after_ends(self) -> None:
        beyond = torch.arange(self.ids.shape[1])[None] >= self.ends[:, None]
        self.ids[beyond] = 0
        self.logprobs[beyond] = 0.0

    def _next(
        self, steps: Steps, logits: Tensor | None, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sample where there are logits; every rank learns the result."""
        chosen = None
        if logits is not None:
            tokens, logprobs = sample(logits, uniform, self.params)
            # Token ids are exact in float64, so one message carries both.
            chosen = torch.stack([tokens.double(), logprobs.double()])
        chosen = steps.agree(chosen, len(uniform)).cpu()
        return chosen[0].long(), chosen[1].float()
