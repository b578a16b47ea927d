"""Rows of a batch as requests of a streaming engine, and its results as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult


def row_requests(
    prompts: Mapping[str, Any],
    *,
    max_new_tokens: int,
    max_total_length: int,
    greedy: bool = False,
    prefix: str = "",
) -> list[GenerationRequest]:
    """One request per row of a batch.

    Args:
        prompts: ``input_ids`` [B, S] right-padded, ``input_lengths`` [B],
            ``sampling_seed`` [B] int64; if any, ``stop_strings``, a list per row, and
            ``max_new_tokens`` [B], of a row.
        max_new_tokens: longest response of any row.
        max_total_length: prompt and response together never exceed it.
        greedy: take the likeliest token.
        prefix: of the requests' ids.
    """
    lengths = prompts["input_lengths"].tolist()
    own = prompts.get("max_new_tokens")
    rows = zip(
        prompts["input_ids"].tolist(),
        lengths,
        prompts["sampling_seed"].tolist(),
        prompts.get("stop_strings") or [None] * len(lengths),
        [max_new_tokens] * len(lengths) if own is None else own.tolist(),
        strict=True,
    )
    return [
        GenerationRequest(
            id=f"{prefix}{row}",
            prompt_ids=ids[:length],
            seed=seed,
            max_new_tokens=min(most, max_new_tokens, max_total_length - length),
            greedy=greedy,
            stop_strings=tuple(strings or ()),
        )
        for row, (ids, length, seed, strings, most) in enumerate(rows)
    ]


def output_columns(
    requests: Sequence[GenerationRequest], results: Sequence[GenerationResult]
) -> dict[str, Tensor]:
    """The columns of ``GenerationBackend.generate``, and ``token_versions`` [B, S + N].

    Versions are int64: of the weights that sampled a token, -1 elsewhere.
    """
    starts = [len(request.prompt_ids) for request in requests]
    ends = [
        start + len(result.token_ids)
        for start, result in zip(starts, results, strict=True)
    ]
    shape = (len(requests), max(ends, default=0))
    output_ids = torch.zeros(shape, dtype=torch.int64)
    logprobs = torch.zeros(shape, dtype=torch.float32)
    versions = torch.full(shape, -1, dtype=torch.int64)
    for row, (request, result) in enumerate(zip(requests, results, strict=True)):
        start, end = starts[row], ends[row]
        output_ids[row, :start] = torch.tensor(request.prompt_ids)
        output_ids[row, start:end] = torch.tensor(result.token_ids, dtype=torch.int64)
        logprobs[row, start:end] = torch.tensor(result.logprobs)
        versions[row, start:end] = torch.tensor(result.versions, dtype=torch.int64)
    lengths = torch.tensor(ends, dtype=torch.int64)
    return {
        "output_ids": output_ids,
        "unpadded_sequence_lengths": lengths,
        "generation_lengths": lengths - torch.tensor(starts, dtype=torch.int64),
        "logprobs": logprobs,
        "truncated": torch.tensor(
            [result.finish_reason == "length" for result in results], dtype=torch.bool
        ),
        "token_versions": versions,
    }
