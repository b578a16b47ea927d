"""Reward of grpo_llama8b: is the text in the last \\boxed{...} the expected answer?"""

from __future__ import annotations


def boxed_answer(prompt: str, response: str, *, answer: str) -> float:
    """Return 1.0 if the boxed text equals the answer up to spelling, else 0.0."""
    del prompt
    found = last_boxed(response)
    return float(found is not None and plain(found) == plain(str(answer)))


def last_boxed(text: str) -> str | None:
    """Return what the last complete \\boxed{...} holds, nested braces included."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len("\\boxed{") : position]
    return None


def plain(text: str) -> str:
    """Drop spaces, dollar signs, thousands separators and a final full stop."""
    for noise in ("\\left", "\\right", "\\!", "\\,", "\\$", "$", ",\\!", " "):
        text = text.replace(noise, "")
    digits = text.replace(",", "")
    text = digits if digits.lstrip("-").replace(".", "", 1).isdigit() else text
    return text.removesuffix(".").replace("dfrac", "frac").replace("tfrac", "frac")
