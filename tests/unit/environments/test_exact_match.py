"""exact_match: all or nothing."""

import pytest

from nemo_rl.environments.exact_match import exact_match


@pytest.mark.parametrize(
    ("response", "answer", "truncated", "reward"),
    [
        ("7", "7", False, 1.0),
        (" 7\n", "7 ", False, 1.0),
        ("7", 7, False, 1.0),
        ("7", "7", True, 0.0),
        ("77", "7", False, 0.0),
        ("7.", "7", False, 0.0),
        ("", "7", False, 0.0),
    ],
)
def test_rewards(response, answer, truncated, reward):
    assert exact_match("q", response, answer, truncated) == reward


def test_a_row_without_an_answer_is_an_error():
    with pytest.raises(ValueError, match="no answer to compare"):
        exact_match("q", "7", None)
