"""The one wording for unknown names: "Did you mean X?"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean X?" for the closest choice, "" if none is close.

    The leading blank lets a caller append the result to a finished sentence.

    Example:
        >>> did_you_mean("max_step", ["max_steps", "seed"])
        ' Did you mean max_steps?'
    """
    spelled = {choice.lower(): choice for choice in choices}
    close = get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)
    return f" Did you mean {spelled[close[0]]}?" if close else ""
