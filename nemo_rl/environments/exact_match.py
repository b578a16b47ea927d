"""exact_match: 1.0 for the reference answer and nothing else."""

from __future__ import annotations

from typing import Any


def exact_match(
    prompt: str, response: str, answer: Any, truncated: bool = False
) -> float:
    """Return 1.0 if the stripped response equals the answer and ended by itself.

    A response cut off by the token limit is wrong even where its text agrees: the
    policy has not learned to stop.

    Args:
        prompt: Not looked at.
        response: Generated text without the end token.
        answer: Reference; compared as text.
        truncated: Whether the token limit cut the response off.

    Raises:
        ValueError: The row has no answer.
    """
    if answer is None:
        raise ValueError(
            "the row has no answer to compare with; set data.answer_key to the field "
            "that holds it"
        )
    return float(not truncated and response.strip() == str(answer).strip())
