"""What the processes of an engine answer, errors among it."""

from __future__ import annotations

import pytest

from nemo_rl.backends.generation.vllm.answers import answering, checked
from nemo_rl.backends.refit.control import PeerFailed
from nemo_rl.utils.exceptions import RefitError, TrainingError


@answering
def answer(number: int) -> int:
    if number == 0:
        raise PeerFailed("stage 0 gave up first")
    if number == 1:
        raise RefitError("no room")
    if number == 2:
        raise KeyError("foreign")
    return number


def test_answers_pass() -> None:
    assert checked([answer(3), answer(4)]) == [3, 4]


@pytest.mark.parametrize(
    ("numbers", "error", "text"),
    [
        ((0, 1, 4), RefitError, "no room"),
        ((0, 4), PeerFailed, "gave up first"),
        ((4, 2), TrainingError, "KeyError: 'foreign'"),
    ],
)
def test_the_cause_is_raised_after_all_have_answered(numbers, error, text) -> None:
    answers = [answer(number) for number in numbers]
    with pytest.raises(error, match=text):
        checked(answers)
