"""Reward functions of every signature; whatever goes wrong names function and row."""

import functools
from collections.abc import Sequence

import pytest
import torch

from nemo_rl.environments import FunctionalRewardWrapper
from nemo_rl.utils.exceptions import ConfigurationError, DataError, RewardError

LOGS = [
    [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "one"}],
    [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "turn"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "three"},
    ],
]
META = [
    {"prompt": "<q1>", "answer": "one", "row": {"level": 1}, "truncated": False},
    {"prompt": "<q2>", "answer": "two", "row": {"level": 5}, "truncated": True},
]


def rewards(fn, **kwargs):
    return FunctionalRewardWrapper(fn, **kwargs).step(LOGS, META).rewards.tolist()


def test_a_function_of_prompt_and_response():
    calls = []

    def score(prompt: str, response: str) -> float:
        calls.append((prompt, response))
        return len(response)

    returned = FunctionalRewardWrapper(score).step(LOGS, META)
    assert calls == [("q1", "one"), ("q2", "three")]
    assert returned.rewards.tolist() == [3.0, 5.0]
    assert returned.rewards.dtype == torch.float32
    assert returned.terminateds.tolist() == [True, True]
    assert len(returned.metadata) == len(returned.next_stop_strings) == 2


def batch_by_annotation(p: list[str], r: list[str]) -> list[float]:
    return [float(len(x)) for x in r]


def batch_by_sequence(p: Sequence[str], r: Sequence[str]):
    return torch.tensor([float(len(x)) for x in r])


def batch_by_text(p: "list[str]", r: "List[str]"):  # noqa: F821, UP006
    return [len(x) for x in r]


def batch_by_name(prompts, responses):
    return tuple(len(x) for x in responses)


@pytest.mark.parametrize(
    "fn", [batch_by_annotation, batch_by_sequence, batch_by_text, batch_by_name]
)
def test_batched_functions_are_recognised(fn):
    assert FunctionalRewardWrapper(fn).batched
    assert rewards(fn) == [3.0, 5.0]


def test_one_by_one_functions_are_not_taken_for_batched():
    assert not FunctionalRewardWrapper(lambda p, r: 0.0).batched

    def named(prompts: str, responses: str):
        return 0.0

    assert not FunctionalRewardWrapper(named).batched
    assert rewards(lambda p, r: [len(x) for x in r], batched=True) == [3.0, 5.0]


def test_extras_are_passed_to_who_asks():
    def score(prompt, response, answer, truncated=False, *, row=None, messages=None):
        return float(response == answer) + 10 * truncated + row["level"] * len(messages)

    assert rewards(score) == [1.0 + 1 * 1, 10.0 + 5 * 4]

    def batch(prompts, responses, answers, rows):
        return [len(a) + r["level"] for a, r in zip(answers, rows, strict=True)]

    assert rewards(batch) == [4.0, 8.0]

    def everything(prompt, response, **more):
        return float(sorted(more) == ["answer", "messages", "row", "truncated"])

    assert rewards(everything) == [1.0, 1.0]


def test_keywords_callables_and_partials():
    class Scorer:
        def __call__(self, prompt, response, scale):
            return scale * len(response)

    assert rewards(Scorer(), kwargs={"scale": 2}) == [6.0, 10.0]
    assert FunctionalRewardWrapper(Scorer(), kwargs={"scale": 2}).name == "Scorer"
    partial = functools.partial(lambda p, r, k: k, k=0.5)
    assert rewards(partial) == [0.5, 0.5]


@pytest.mark.parametrize("value", [True, 1, 1.0, torch.tensor(1.0)])
def test_every_number_is_a_reward(value):
    assert rewards(lambda p, r: value) == [1.0, 1.0]


@pytest.mark.parametrize("value", [None, "1", float("nan"), float("inf"), [1.0]])
def test_everything_else_is_refused(value):
    def score(prompt, response):
        return value

    with pytest.raises(RewardError, match="(?s)score returned .*Response: 'one'"):
        rewards(score)
    with pytest.raises(RewardError, match="(?s)lots returned .*Prompt: 'q2'"):
        rewards(lambda prompts, responses: [1.0, value], name="lots")


def test_an_exception_names_function_line_prompt_and_response():
    def broken(prompt, response):
        return 1 / (len(response) - 5)

    with pytest.raises(RewardError) as caught:
        rewards(broken)
    text = str(caught.value)
    assert "broken raised ZeroDivisionError" in text and "q2" in text
    assert "test_functional_reward.py, line" in text and "'three'" in text
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_own_errors_pass_and_long_texts_are_cut():
    def refuse(prompt, response):
        raise DataError("bad row")

    with pytest.raises(DataError, match="bad row"):
        rewards(refuse)
    log = [{"role": "user", "content": "x" * 999}, {"role": "assistant", "content": ""}]
    with pytest.raises(RewardError) as caught:
        FunctionalRewardWrapper(lambda p, r: None).step([log], [{}])
    assert "x" * 200 + "..." in str(caught.value) and len(str(caught.value)) < 500


def test_batched_results_of_the_wrong_kind():
    with pytest.raises(RewardError, match="returned 1 rewards for 2 responses"):
        rewards(lambda prompts, responses: [1.0])
    with pytest.raises(RewardError, match="returned float, expected a list of 2"):
        rewards(lambda prompts, responses: 1.0)
    with pytest.raises(RewardError, match=r"(?s)raised KeyError.*\(first of 2\)"):
        rewards(lambda prompts, responses: {}["x"])


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        ("text", "must be a function"),
        (lambda prompt: 0.0, "must take a prompt and a response"),
        (lambda p, r, ground_truth: 0.0, "asks for ground_truth.*answer, row"),
    ],
)
def test_unusable_functions_are_refused_at_once(fn, message):
    with pytest.raises(ConfigurationError, match=message):
        FunctionalRewardWrapper(fn)


def test_an_empty_batch_is_no_call():
    returned = FunctionalRewardWrapper(lambda p, r: 1 / 0).step([], [])
    assert returned.rewards.shape == (0,)
