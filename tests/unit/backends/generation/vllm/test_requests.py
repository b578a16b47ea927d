"""Requests as vLLM's arguments, its outputs as results; no vLLM is imported."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_rl.backends.generation.base import GenerationRequest
from nemo_rl.backends.generation.vllm.requests import (
    Outbox,
    Running,
    check_request,
    duplicates,
    ended_before,
    prompt_of,
    reason_of,
    sampled_logprobs,
    sampling_arguments,
)
from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.utils.exceptions import ConfigurationError, DataError, TrainingError


def settings(**fields: Any) -> VllmSettings:
    return VllmSettings(
        **{"model": "m", "dtype": "float32", "max_model_len": 8} | fields
    )


def request(**fields: Any) -> GenerationRequest:
    given = {"id": "a", "prompt_ids": [5, 6], "seed": 3, "max_new_tokens": 4}
    return GenerationRequest(**{**given, **fields})


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"prompt_ids": []}, DataError, "no token"),
        ({"prompt_ids": [1] * 8}, ConfigurationError, "to at least 9"),
        ({"stop_strings": ("x",)}, ConfigurationError, "skip_tokenizer_init"),
    ],
)
def test_what_cannot_be_answered(fields, error, text) -> None:
    with pytest.raises(error, match=text):
        check_request(request(**fields), settings())
    check_request(request(), settings())
    check_request(request(prompt_ids=[1] * 7), settings())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"begun_ids": [7, 8, 9]}, None),
        ({"begun_ids": [7, 2]}, "stop"),
        ({"begun_ids": [2, 7]}, None),
        ({"begun_ids": [7, 8, 9, 9]}, "length"),
        ({"begun_ids": [7] * 6, "max_new_tokens": 90}, "length"),
        ({"max_new_tokens": 0}, "length"),
    ],
)
def test_a_response_may_be_complete_before_it_is_asked_for(fields, reason) -> None:
    assert ended_before(request(**fields), settings(stop_token_ids=(2,))) == reason


def test_sampling_is_as_configured() -> None:
    given = sampling_arguments(
        request(begun_ids=[9]),
        settings(temperature=0.5, top_p=0.9, top_k=7, stop_token_ids=(2, 3)),
    )
    # The model divides its logits; the sampler must not do it again.
    assert (given["temperature"], given["top_p"], given["top_k"]) == (1.0, 0.9, 7)
    assert given["max_tokens"] == 3 and given["stop_token_ids"] == [2, 3]
    assert given["logprobs"] == 0 and "stop" not in given
    plain = sampling_arguments(request(), settings(temperature=0.5))
    assert (plain["temperature"], plain["top_p"], plain["top_k"]) == (0.5, 1.0, 0)


@pytest.mark.parametrize("of", [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}])
def test_greedy_has_no_seed_and_no_filters(of) -> None:
    given = sampling_arguments(request(greedy=True), settings(**of))
    assert (given["temperature"], given["seed"]) == (0.0, None)
    assert "top_p" not in given and "top_k" not in given


def test_strings_of_the_engine_and_of_the_row_stop() -> None:
    engine = settings(stop_strings=("x",), with_tokenizer=True)
    given = sampling_arguments(request(stop_strings=("y",)), engine)
    assert given["stop"] == ["x", "y"]
    assert given["include_stop_str_in_output"] and given["detokenize"]


def test_seeds_are_what_vllm_takes_and_the_rest_of_a_response_has_its_own() -> None:
    def seed(value: int, **fields: Any) -> int:
        return sampling_arguments(request(seed=value, **fields), settings())["seed"]

    assert seed(3) == 3
    assert all(0 <= seed(value) < 2**63 for value in (-1, 2**63, 2**64 + 1))
    later = {seed(3, begun_ids=[7] * count) for count in range(4)}
    assert len(later) == 4 and all(0 <= value < 2**63 for value in later)


def test_caches_of_other_weights_are_kept_apart() -> None:
    prompts = [prompt_of(request(begun_ids=[7]), epoch) for epoch in (0, 1)]
    assert [p["prompt_token_ids"] for p in prompts] == [[5, 6, 7]] * 2
    assert prompts[0]["cache_salt"] != prompts[1]["cache_salt"]


def completion(tokens: list[int], values: list[float], **fields: Any) -> Any:
    logprobs = [
        {t: SimpleNamespace(logprob=v)} for t, v in zip(tokens, values, strict=True)
    ]
    return SimpleNamespace(token_ids=tokens, logprobs=logprobs, **fields)


def test_a_result_is_the_sum_of_its_deltas() -> None:
    running = Running(request())
    running.extend(completion([7], [-1.0]), 0)
    running.extend(completion([], []), 1)
    running.extend(completion([8, 2], [-2.0, -3.0]), 1)
    result = running.result("stop")
    assert (result.id, result.token_ids, result.versions) == ("a", [7, 8, 2], [0, 1, 1])
    assert (result.logprobs, result.finish_reason) == ([-1.0, -2.0, -3.0], "stop")


def test_log_probs_are_never_made_up() -> None:
    assert sampled_logprobs([], None) == []
    with pytest.raises(ValueError, match="no log-probs"):
        sampled_logprobs([7], None)
    with pytest.raises(ValueError):
        sampled_logprobs([7, 8], completion([7], [-1.0]).logprobs)


def test_a_response_that_vllm_gave_up_is_an_error() -> None:
    def output(reason: str) -> Any:
        return SimpleNamespace(
            request_id="a", outputs=[SimpleNamespace(finish_reason=reason)]
        )

    assert [reason_of(output(r)) for r in ("stop", "length", "abort")] == [
        "stop",
        "length",
        "abort",
    ]
    with pytest.raises(TrainingError, match="'error'"):
        reason_of(output("error"))


def test_two_that_run_have_two_ids() -> None:
    duplicates([request(), request(id="b")], ["c"])
    for requests, running in (([request(), request()], []), ([request()], ["a"])):
        with pytest.raises(TrainingError, match="id 'a'"):
            duplicates(requests, running)


def test_what_ended_is_handed_over_before_the_reason_why_nothing_comes() -> None:
    outbox, result = Outbox(), Running(request()).result("stop")
    assert outbox.take(0.01) == []
    threading.Timer(0.02, outbox.put, ([result],)).start()
    assert outbox.take(5) == [result]
    outbox.put([result])
    outbox.fail(TrainingError("first"))
    outbox.fail(TrainingError("second"))
    assert outbox.take(5) == [result]
    for ask in (lambda: outbox.take(5), outbox.check):
        with pytest.raises(TrainingError, match="first"):
            ask()
