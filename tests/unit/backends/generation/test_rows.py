"""Rows of a batch to requests of an engine, and its results to columns."""

from __future__ import annotations

import torch

from nemo_rl.backends.generation.base import GenerationResult
from nemo_rl.backends.generation.rows import output_columns, row_requests

PROMPTS = {
    "input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]),
    "input_lengths": torch.tensor([3, 1]),
    "sampling_seed": torch.tensor([2**62, 9]),
}


def test_a_row_is_its_own_tokens_seed_and_room():
    requests = row_requests(
        PROMPTS, max_new_tokens=6, max_total_length=8, prefix="a/", greedy=True
    )
    assert [r.id for r in requests] == ["a/0", "a/1"]
    assert [r.prompt_ids for r in requests] == [[5, 6, 7], [8]]
    assert [r.seed for r in requests] == [2**62, 9]
    assert [r.max_new_tokens for r in requests] == [5, 6]
    assert all(r.greedy and r.stop_strings == () for r in requests)


def test_rows_may_have_stops_and_lengths_of_their_own():
    own = {"stop_strings": [["x"], None], "max_new_tokens": torch.tensor([2, 99])}
    requests = row_requests({**PROMPTS, **own}, max_new_tokens=6, max_total_length=64)
    assert [r.stop_strings for r in requests] == [("x",), ()]
    assert [r.max_new_tokens for r in requests] == [2, 6]


def test_results_stand_after_their_prompts():
    requests = row_requests(PROMPTS, max_new_tokens=6, max_total_length=64)
    results = [
        GenerationResult(
            id="0",
            token_ids=[1, 2],
            logprobs=[-0.5, -1.5],
            versions=[3, 4],
            finish_reason="stop",
        ),
        GenerationResult(
            id="1", token_ids=[9], logprobs=[-2.0], versions=[4], finish_reason="length"
        ),
    ]
    columns = output_columns(requests, results)
    assert columns["output_ids"].tolist() == [[5, 6, 7, 1, 2], [8, 9, 0, 0, 0]]
    assert columns["logprobs"].tolist() == [[0, 0, 0, -0.5, -1.5], [0, -2, 0, 0, 0]]
    assert columns["token_versions"].tolist() == [
        [-1, -1, -1, 3, 4],
        [-1, 4, -1, -1, -1],
    ]
    assert columns["unpadded_sequence_lengths"].tolist() == [5, 2]
    assert columns["generation_lengths"].tolist() == [2, 1]
    assert columns["truncated"].tolist() == [False, True]


def test_no_rows_are_no_columns_of_rows():
    assert {name: len(c) for name, c in output_columns([], []).items()} == {
        "output_ids": 0,
        "unpadded_sequence_lengths": 0,
        "generation_lengths": 0,
        "logprobs": 0,
        "truncated": 0,
        "token_versions": 0,
    }
