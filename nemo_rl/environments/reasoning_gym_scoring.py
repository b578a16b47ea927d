"""Scores of reasoning_gym; run in a process of its own, see ``line_workers``.

Some of its scorers evaluate the answer as an expression, which may take for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nemo_rl.data.datasets.reasoning_gym import make_entry, make_task
from nemo_rl.utils.imports import require

_FULL = 1.0 - 1e-6


def prepare() -> None:
    """Import what the first score needs, before its time is measured."""
    require("reasoning_gym")


def find_answer(response: str, require_tags: bool) -> str | None:
    """Return what stands in the last <answer> tags, or None if nothing does.

    Args:
        response: Generated text.
        require_tags: Without tags there is no answer; else it is the whole response.
    """
    found = require("reasoning_gym").utils.extract_answer(response)
    if found is None and not require_tags:
        return response.strip() or None
    return found


def score(
    response: str,
    problem: Mapping[str, Any],
    question: str,
    *,
    partial_credit: bool,
    require_tags: bool,
) -> tuple[float, str | None]:
    """Return the score in [0, 1] and the answer that was found.

    Args:
        response: Generated text.
        problem: Task, config, seed and index of the problem, which is made again:
            what its scorer needs does not travel as text.
        question: Beginning of the row's prompt, to notice another problem.
        partial_credit: Keep a fraction; False makes anything below 1 a 0.
        require_tags: As ``find_answer``.

    Raises:
        RuntimeError: The problem that was made is not the row's.
    """
    found = find_answer(response, require_tags)
    if found is None:
        return 0.0, None
    config = json.dumps(dict(problem["config"]))
    where = (problem["task"], config, problem["seed"])
    entry = _entry(*where, problem["index"])
    if not question.startswith(entry["question"]):
        raise RuntimeError(
            f"task {problem['task']!r} does not make the same problem twice"
        )
    value = float(make_task(*where).score_answer(found, entry))
    return (value if partial_credit else float(value >= _FULL)), found


_entry = lru_cache(maxsize=4096)(make_entry)
