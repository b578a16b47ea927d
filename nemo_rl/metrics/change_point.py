"""A rise of a noisy series, told from its noise: one number per step, no tensors.

CUSUM of Page 1954, "Continuous inspection schemes", Biometrika 41, on residuals that
are made robust: median and median absolute deviation of the recent past stand for mean
and deviation, and a residual counts at most a few of them (Huber 1981, "Robust
statistics", chapter 1). So neither a heavy tail nor one wild step raises an alarm, and
no baseline has to be given.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation to standard deviation, of normal noise."""
_LEAST_DEVIATION = 0.02
"""Of a logarithm: less than 2 % is not told apart from rounding."""


@dataclass(frozen=True)
class Alarm:
    """A rise was noticed.

    Attributes:
        value: the newest.
        usual: median of the recent past.
        begun: how many values ago the rise began, by the estimate of Page.
    """

    value: float
    usual: float
    begun: int


class RiseDetector:
    """Notices that positive values have become larger, on a logarithmic scale.

    The defaults notice a lasting rise by three deviations after about eight values, and
    cry wolf less than once in 10,000 values of independent noise as heavy-tailed as
    Student's t with three degrees of freedom.

    Args:
        slack: deviations of a residual that are no evidence; half the rise to notice.
        threshold: evidence that is enough, in deviations.
        most: deviations that one value counts at most.
        window: values that the baseline is taken from.
        least: values before the first alarm.

    Example:
        >>> detector = RiseDetector()
        >>> any(detector.add(0.010 + 0.001 * (i % 3)) for i in range(60))
        False
        >>> [bool(detector.add(0.1)) for _ in range(6)].index(True)
        3
    """

    def __init__(
        self,
        *,
        slack: float = 1.5,
        threshold: float = 8.0,
        most: float = 4.0,
        window: int = 200,
        least: int = 20,
    ) -> None:
        self._slack, self._threshold, self._most = slack, threshold, most
        self._past: deque[float] = deque(maxlen=window)
        self._least = least
        self._evidence, self._begun = 0.0, 0

    def add(self, value: float) -> Alarm | None:
        """Take the next value; after an alarm the baseline is learnt anew.

        Args:
            value: at least 0. What is not finite is passed over: it is an error of its
                own and no rise.
        """
        if not math.isfinite(value):
            return None
        new = math.log(max(value, 1e-12))
        alarm = self._judge(new, value) if len(self._past) >= self._least else None
        if alarm is not None:
            self._past.clear()
        self._past.append(new)
        return alarm

    def _judge(self, new: float, value: float) -> Alarm | None:
        usual = statistics.median(self._past)
        deviation = _MAD_TO_DEVIATION * statistics.median(
            abs(old - usual) for old in self._past
        )
        residual = (new - usual) / max(deviation, _LEAST_DEVIATION)
        self._evidence += min(residual, self._most) - self._slack
        if self._evidence <= 0:
            self._evidence, self._begun = 0.0, 0
            return None
        self._begun += 1
        if self._evidence < self._threshold:
            return None
        alarm = Alarm(value=value, usual=math.exp(usual), begun=self._begun)
        self._evidence, self._begun = 0.0, 0
        return alarm

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {
            "past": list(self._past),
            "evidence": self._evidence,
            "begun": self._begun,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._past.clear()
        self._past.extend(float(v) for v in state["past"])
        self._evidence = float(state["evidence"])
        self._begun = int(state["begun"])
