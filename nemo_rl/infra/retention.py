"""Which checkpoints to remove: a pure choice by step and metric; knows no files."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are one number each; tensors of one element included."""
    found = {}
    for name, value in metrics.items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(value)
    return found


def metric_value(metrics: Mapping[str, float], name: str | None) -> float | None:
    """Look up `val:accuracy` (also stored as `val/accuracy`); None if unusable.

    A metric that is not a number cannot be ranked and counts as missing.
    """
    if not name:
        return None
    value = metrics.get(name, metrics.get(name.replace(":", "/", 1)))
    return None if value is None or math.isnan(value) else value


def superfluous(
    values: Mapping[int, float | None],
    *,
    latest: int,
    keep_top_k: int | None,
    higher_is_better: bool = True,
) -> list[int]:
    """Steps to remove, ascending: all but the best `keep_top_k` and the latest.

    A checkpoint without the metric ranks below every one that has it; it stays
    only where there are fewer than `keep_top_k` of those. Of equal ones the newer
    is better. None keeps everything.

    Args:
        values: step -> metric, None where it is missing.
        latest: the step that must stay, so that a resume loses nothing.
        keep_top_k: how many of the best stay; 0 keeps only the latest.
        higher_is_better: direction of the metric.
    """
    if keep_top_k is None:
        return []
    sign = 1.0 if higher_is_better else -1.0

    def rank(step: int) -> tuple[bool, float, int]:
        value = values[step]
        return value is not None, sign * (value or 0.0), step

    ranked = sorted(values, key=rank, reverse=True)
    kept = {latest, *ranked[: max(keep_top_k, 0)]}
    return sorted(set(values) - kept)
