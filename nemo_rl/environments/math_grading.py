r"""Grading of mathematical answers: find the answer in a response, compare it.

Pure strings in, numbers out. Run in a process of its own: comparing two expressions
may take for ever. The answer of a response is the first of these that it has:

1. the last ``\boxed{...}``
2. what follows the last ``####`` on its line, as in GSM8K
3. the last ``<answer>...</answer>``
4. the last number
"""

from __future__ import annotations

import re

from nemo_rl.utils.imports import require

_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+|/\d+)?|-?\.\d+")
_BOXED = ("\\boxed{", "\\fbox{")


def prepare() -> None:
    """Import what the first comparison needs, before its time is measured."""
    require("math_verify")


def extract_answer(response: str) -> str | None:
    """Return the answer of a response, or None if it has none.

    A box that is opened and not closed is an answer that was cut off: None.
    """
    boxes = [response.rfind(box) for box in _BOXED]
    if max(boxes) >= 0:
        return _braced(response[response.index("{", max(boxes)) :])
    for pattern in (_HASHES, _TAGS):
        found = pattern.findall(response)
        if found:
            return found[-1].strip()
    numbers = _NUMBER.findall(response)
    return numbers[-1] if numbers else None


def grade(response: str, answer: str) -> tuple[float, str | None]:
    """Return 1.0 or 0.0, and the answer that was found.

    Args:
        response: Generated text.
        answer: Reference: an expression, or a solution that ends in ``#### 42`` or
            has a ``\\boxed{42}``.
    """
    found = extract_answer(response)
    if found is None:
        return 0.0, None
    reference = answer
    if "####" in answer or any(box in answer for box in _BOXED):
        reference = extract_answer(answer) or answer
    return float(_same(found, reference)), found


def _same(found: str, reference: str) -> bool:
    if _plain(found) == _plain(reference):
        return True
    math_verify = require("math_verify")
    # Whoever runs this process watches its time; the library's own watch needs the
    # main thread's signals.
    left, right = (
        math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None)
        for text in (reference, found)
    )
    return bool(math_verify.verify(left, right, timeout_seconds=None))


def _plain(text: str) -> str:
    """Drop what means nothing in a number: spaces, thousands, dollars, a full stop."""
    text = text.strip().strip("$").strip().removesuffix(".")
    text = text.replace("\\$", "").replace("\\!", "").replace("\\,", "")
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.replace(" ", "")).lstrip("$")


def _braced(text: str) -> str | None:
    """Return what stands between the first brace and the one that closes it."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:position].strip()
    return None
