"""What an answer says; whole batches are in test_evaluation.py."""

from __future__ import annotations

import pytest

from nemo_rl.evals.answers import vote_of


@pytest.mark.parametrize(
    ("response", "pattern", "vote"),
    [
        (" 7\n", None, "7"),
        (" ", None, None),
        ("first 3, then 12", r"\d+", "12"),
        ("answer: 4. answer: 5 ", r"answer: (\d)", "5"),
        ("I do not know", r"answer: (\d)", None),
        ("b", r"(a)|b", None),  # the group took no part in the match
    ],
)
def test_vote(response: str, pattern: str | None, vote: str | None) -> None:
    assert vote_of(response, pattern) == vote
