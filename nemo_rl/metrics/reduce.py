"""One number per name from the numbers of every rank or micro-batch.

Plain floats in, plain floats out; knows no process groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Rule = str
"""One of "sum", "mean", "max", "min"."""

_BY_ENDING = (
    ("_sum", "sum"),
    ("_count", "sum"),
    ("_total", "sum"),
    ("_max", "max"),
    ("_min", "min"),
)
_BY_BEGINNING = (("num_", "sum"), ("total_", "sum"), ("max_", "max"), ("min_", "min"))


def rule_of(name: str) -> Rule:
    """How a metric is reduced, by its name: reward_max -> max, num_tokens -> sum."""
    name = name.rpartition("/")[2]
    for ending, rule in _BY_ENDING:
        if name.endswith(ending):
            return rule
    for beginning, rule in _BY_BEGINNING:
        if name.startswith(beginning):
            return rule
    return "mean"


def reduce_metrics(
    parts: Sequence[Mapping[str, float]],
    *,
    weights: Sequence[float] | None = None,
    rules: Mapping[str, Rule] | None = None,
) -> dict[str, float]:
    """Reduce {name: number} of several ranks to one.

    A part without a name does not count for it. A part whose weight is 0 saw no
    tokens and counts for no mean. The sentinels of an empty maximum (-inf) and of
    an empty minimum (inf) lose against any number; where all are sentinels the name
    is left out, as is a mean over weights that are all 0. A NaN stays visible: the
    result is NaN.

    Args:
        parts: one mapping per rank (or micro-batch).
        weights: how much each part counts in a mean, its tokens or samples; equal
            weights where None.
        rules: name -> rule, where the name alone does not tell (see `rule_of`).

    Raises:
        ValueError: weights of another length, a negative weight, or an unknown rule.
    """
    if weights is None:
        weights = [1.0] * len(parts)
    if len(weights) != len(parts):
        raise ValueError(f"{len(weights)} weights for {len(parts)} parts")
    if any(weight < 0 for weight in weights):
        raise ValueError(f"weights must not be negative: {list(weights)}")
    names = list(dict.fromkeys(name for part in parts for name in part))
    reduced = {}
    for name in names:
        rule = (rules or {}).get(name) or rule_of(name)
        pairs = [
            (float(part[name]), float(weight))
            for part, weight in zip(parts, weights, strict=True)
            if name in part
        ]
        value = _reduce(name, rule, pairs)
        if value is not None:
            reduced[name] = value
    return reduced


def _reduce(name: str, rule: Rule, pairs: list[tuple[float, float]]) -> float | None:
    values = [value for value, _ in pairs]
    if rule == "sum":
        return math.fsum(values)
    if rule == "mean":
        return _mean(pairs)
    if rule not in ("max", "min"):
        raise ValueError(
            f"{rule!r} is no rule to reduce {name}. Rules: sum, mean, max, min."
        )
    if any(math.isnan(value) for value in values):
        return math.nan
    sentinel = -math.inf if rule == "max" else math.inf
    found = [value for value in values if value != sentinel]
    if not found:
        return None
    return max(found) if rule == "max" else min(found)


def _mean(pairs: list[tuple[float, float]]) -> float | None:
    counted = [(value, weight) for value, weight in pairs if weight > 0]
    if not counted:
        return None
    total = math.fsum(weight for _, weight in counted)
    return math.fsum(value * weight for value, weight in counted) / total
