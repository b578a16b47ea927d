"""Rows of published chat datasets: conversations, and pairs of better and worse.

Tulu 3 (arXiv:2411.15124), UltraFeedback binarized (arXiv:2310.01377, 2310.16944),
HelpSteer2 (arXiv:2406.08673) and HelpSteer3-Preference (arXiv:2505.11475). Knows no
file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from nemo_rl.data.datasets.fields import field, shown, text, turns, whole_number
from nemo_rl.data.datasets.views import (
    ChosenRows,
    RewrittenRows,
    column,
    describe_row,
)
from nemo_rl.utils.exceptions import DataError

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]

_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")


def tulu(row: Row, where: str) -> dict[str, Any]:
    """Return the conversation of a row of the Tulu 3 SFT mixture."""
    return _conversation(turns(row, "messages", where), where)


def ultrafeedback(row: Row, where: str) -> dict[str, Any]:
    """Return the pair of a row of UltraFeedback binarized.

    Both conversations begin alike; the last message of each is the response.
    """
    chosen, rejected = turns(row, "chosen", where), turns(row, "rejected", where)
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise DataError(
            f"{where}: fields 'chosen' and 'rejected' must be the same prompt followed "
            f"by one response, got {len(chosen)} and {len(rejected)} messages that "
            "differ before the last."
        )
    for key, message in (("chosen", chosen[-1]), ("rejected", rejected[-1])):
        if message["role"] != "assistant":
            raise DataError(
                f"{where}: the last message of {key!r} must be the assistant's, got "
                f"the role {message['role']!r}."
            )
    return {
        "prompt": chosen[:-1],
        "chosen": chosen[-1]["content"],
        "rejected": rejected[-1]["content"],
    }


def ultrafeedback_chosen(row: Row, where: str) -> dict[str, Any]:
    """Return the better conversation of a row of UltraFeedback binarized."""
    return _conversation(turns(row, "chosen", where), where)


def helpsteer2(row: Row, where: str) -> dict[str, Any]:
    """Return a rated response of HelpSteer2 as a conversation with its ratings."""
    messages = helpsteer2_turns(text(row, "prompt", where), where)
    answer = {"role": "assistant", "content": text(row, "response", where)}
    helpful = field(row, "helpfulness", where)
    return {
        "messages": [*messages, answer],
        "helpfulness": _rating(helpful, where),
    }


def helpsteer2_turns(prompt: str, where: str) -> list[dict[str, str]]:
    r"""Divide a prompt of HelpSteer2 into turns.

    A prompt of several turns is the first question, then ``\n<extra_id_1>Assistant\n``
    and an answer, then ``\n<extra_id_1>User\n`` and a question, and so on.
    """
    parts = _TURN.split(prompt)
    roles = ["User", *parts[1::2]]
    expected = ["User", "Assistant"] * len(roles)
    if roles != expected[: len(roles)] or roles[-1] != "User":
        raise DataError(
            f"{where}: the turns of 'prompt' must be User, Assistant, ..., User, got "
            f"{', '.join(roles)}."
        )
    return [
        {"role": role.lower(), "content": content.strip()}
        for role, content in zip(roles, parts[::2], strict=True)
    ]


def helpsteer2_pairs(rows: Any) -> Any:
    """Return the pairs of HelpSteer2: the more and the less helpful response.

    The two responses to a prompt are rated apart; a pair whose ratings are equal says
    nothing and is left out.
    """
    ratings = column(rows, "helpfulness")
    by_prompt: dict[Any, list[int]] = {}
    for idx, prompt in enumerate(column(rows, "prompt")):
        if not isinstance(prompt, str):
            raise DataError(
                f"{describe_row(rows, idx)}: field 'prompt' must be a text, got "
                f"{shown(prompt)}."
            )
        by_prompt.setdefault(prompt, []).append(idx)
    scores = [_rating(r, describe_row(rows, i)) for i, r in enumerate(ratings)]
    pairs = []
    for same in by_prompt.values():
        best, worst = (
            max(same, key=scores.__getitem__),
            min(same, key=scores.__getitem__),
        )
        if scores[best] > scores[worst]:
            pairs.append((best, worst))
    _say("HelpSteer2", len(by_prompt) - len(pairs), len(by_prompt))
    return _RatedPairs(rows, pairs)


class _RatedPairs:
    """Pairs of rows of HelpSteer2 with one prompt: the better one, the worse one."""

    def __init__(self, rows: Any, pairs: list[tuple[int, int]]) -> None:
        self._rows, self._pairs = rows, pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        (better, where), (worse, elsewhere) = (
            (self._rows[i], describe_row(self._rows, i)) for i in self._pairs[idx]
        )
        return {
            "prompt": helpsteer2_turns(text(better, "prompt", where), where),
            "chosen": text(better, "response", where),
            "rejected": text(worse, "response", elsewhere),
        }

    def describe_row(self, idx: int) -> str:
        return describe_row(self._rows, self._pairs[idx][0])


def helpsteer3_pairs(rows: Any) -> Any:
    """Return the pairs of HelpSteer3-Preference.

    ``overall_preference`` is -3 (the first response is much better) to 3 (the second
    is); rows with 0 say nothing and are left out.
    """
    preferences = column(rows, "overall_preference")
    kept = [
        idx
        for idx, value in enumerate(preferences)
        if _preference(value, describe_row(rows, idx))
    ]
    _say("HelpSteer3", len(rows) - len(kept), len(rows))
    return RewrittenRows(ChosenRows(rows, kept), _helpsteer3)


def _helpsteer3(row: Row, where: str) -> dict[str, Any]:
    first, second = text(row, "response1", where), text(row, "response2", where)
    if _preference(row.get("overall_preference"), where) > 0:
        first, second = second, first
    return {"prompt": turns(row, "context", where), "chosen": first, "rejected": second}


def _conversation(messages: list[dict[str, str]], where: str) -> dict[str, Any]:
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: a conversation to learn from ends with the assistant's message, "
            f"this one with the role {messages[-1]['role']!r}."
        )
    return {"messages": messages}


def _rating(value: Any, where: str) -> int:
    return whole_number(value, "helpfulness", where, lowest=0, highest=4)


def _preference(value: Any, where: str) -> int:
    return whole_number(value, "overall_preference", where, lowest=-3, highest=3)


def _say(name: str, dropped: int, total: int) -> None:
    if dropped:
        logger.info("%s: %d of %d pairs left out as ties.", name, dropped, total)
