"""Rows of a rollout as they grow."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rl.experience.conversations import (
    Conversation,
    length_to_stop,
    padded_prompts,
    rollout_columns,
    turn_metrics,
)


def played() -> Conversation:
    talk = Conversation(ids=[5, 6], messages=[{"role": "user", "content": "q"}])
    talk.say([7, 2], [-0.5, -0.25], "a")
    talk.hear([8], {"role": "user", "content": "o"})
    talk.say([9], [-1.0], "b")
    return talk


def test_observations_are_neither_trained_on_nor_scored() -> None:
    other = Conversation(ids=[4], messages=[])
    columns = rollout_columns([played(), other])
    assert columns["input_ids"].tolist() == [[5, 6, 7, 2, 8, 9], [4, 0, 0, 0, 0, 0]]
    assert columns["token_mask"][0].tolist() == [0, 0, 1, 1, 0, 1]
    logprobs = columns["generation_logprobs"][0].tolist()
    assert logprobs == [0, 0, -0.5, -0.25, 0, -1.0]
    assert columns["prompt_lengths"].tolist() == [2, 1]
    assert columns["num_turns"].tolist() == [2, 0]
    assert columns["response"] == ["b", ""]
    assert [m["content"] for m in columns["conversation"][0]] == ["a", "o", "b"]
    assert columns["token_mask"].dtype == torch.float32


def test_prompts_of_the_next_turn_are_the_ids_so_far() -> None:
    short = Conversation(ids=[4], messages=[], stop_strings=["."])
    prompts = padded_prompts([played(), short], [11, 12])
    assert prompts["input_ids"].tolist() == [[5, 6, 7, 2, 8, 9], [4, 0, 0, 0, 0, 0]]
    assert prompts["input_lengths"].tolist() == [6, 1]
    assert prompts["sampling_seed"].tolist() == [11, 12]
    assert prompts["stop_strings"] == [None, ["."]]
    assert "stop_strings" not in padded_prompts([played()], [11])


def test_metrics_are_means_over_the_rows_that_have_them() -> None:
    talks = [played(), played(), played()]
    for talk, value in zip(talks, (1.0, math.nan, 2.0), strict=True):
        talk.count("moves", value)
        talk.count("moves", value)
    talks[0].terminated = talks[1].overflowed = True
    assert turn_metrics(talks, 1) == {"moves": 3.0}
    assert turn_metrics(talks, 4) == {
        "moves": 3.0,
        "turns": 2.0,
        "turns_max": 2.0,
        "terminated_fraction": 1 / 3,
        "overflowed_fraction": 1 / 3,
    }


@pytest.mark.parametrize(
    ("stops", "length"),
    [(["c"], 3), (["bc"], 3), (["a"], 1), (["x", "d"], 4), (["x"], None), ([], None)],
)
def test_length_to_stop(stops: list[str], length: int | None) -> None:
    def decode(tokens: list[int]) -> str:
        return "".join("abcdc"[token] for token in tokens)

    assert length_to_stop([0, 1, 2, 3, 4], stops, decode) == length
