"""From rewards to numbers with intervals: accuracy, pass@k, cons@k.

Plain numbers in and out; knows no model, no data set and no file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from nemo_rl.metrics.rollout import pass_at_k

RESAMPLES = 2000
"""Of the bootstrap; the ends of a 95 % interval then rest on 50 resamples each."""


@dataclass(frozen=True)
class Estimate:
    """A number over prompts, and how far it may be from the truth.

    Attributes:
        value: mean over the prompts.
        low: lower end of the interval.
        high: upper end.
        method: "wilson" or "bootstrap", see ``interval``.
    """

    value: float
    low: float
    high: float
    method: str

    def __float__(self) -> float:
        """The value alone."""
        return self.value


@dataclass(frozen=True)
class PromptScores:
    """What the n answers to one prompt are worth.

    Attributes:
        rewards: of each answer.
        right: whether each is right.
        votes: what each answer says, for the majority; None abstains.
    """

    rewards: Sequence[float]
    right: Sequence[bool]
    votes: Sequence[Hashable | None]


def summarise(
    scores: Sequence[PromptScores], ks: Sequence[int], *, confidence: float, seed: int
) -> dict[str, Estimate]:
    """Compute every number of an evaluation.

    Args:
        scores: one entry per prompt, all with at least max(ks) answers.
        ks: the k of pass@k and cons@k.
        confidence: of the intervals.
        seed: of the bootstrap.

    Returns:
        ``reward`` (mean over answers, then prompts), ``pass@k`` for each k, and
        ``cons@k`` for each k above 1, in this order. pass@1 is the accuracy.
    """
    columns = {"reward": [float(np.mean(s.rewards)) for s in scores]}
    for k in ks:
        columns[f"pass@{k}"] = [
            pass_at_k([sum(s.right)], [len(s.right)], k) for s in scores
        ]
    for k in ks:
        if k > 1:
            columns[f"cons@{k}"] = [majority(s.votes[:k], s.right[:k]) for s in scores]
    return {
        name: interval(values, confidence=confidence, seed=seed)
        for name, values in columns.items()
    }


def majority(votes: Sequence[Hashable | None], right: Sequence[bool]) -> float:
    """Chance that the most frequent answer is right, a tie being drawn by lot.

    Self-consistency: Wang et al. 2022, arXiv:2203.11171. An answer is right if most
    of those who gave it were found right: a reward may see more than the vote.

    Args:
        votes: [k] what each answer says; None abstains.
        right: [k] whether it is right.

    Returns:
        0 or 1, or the share of right answers among those that tie; 0 where all
        abstain.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    leaders = [vote for vote, count in counts.items() if count == most]
    found = {
        vote: sum(ok for other, ok in zip(votes, right, strict=True) if other == vote)
        for vote in leaders
    }
    return sum(2 * found[vote] > most for vote in leaders) / len(leaders)


def interval(values: Sequence[float], *, confidence: float, seed: int) -> Estimate:
    """Mean over prompts with a confidence interval.

    Prompts are what a data set samples; answers to one prompt are not independent, so
    the interval is always over prompts. Where each prompt's value is 0 or 1 it is
    Wilson's (1927) score interval, which stays honest near 0 and 1; elsewhere the
    percentile bootstrap (Efron 1979) of 2000 resamples of the prompts.

    Args:
        values: [P] one number per prompt.
        confidence: such as 0.95.
        seed: of the resamples.

    Raises:
        ValueError: there are no prompts.
    """
    if not len(values):
        raise ValueError("an interval needs at least one prompt")
    column = np.asarray(values, dtype=np.float64)
    mean = float(column.mean())
    if np.isin(column, (0.0, 1.0)).all():
        return Estimate(mean, *wilson(mean, len(column), confidence), "wilson")
    generator = np.random.default_rng(seed)
    means = [
        column[generator.integers(len(column), size=len(column))].mean()
        for _ in range(RESAMPLES)
    ]
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Estimate(mean, float(low), float(high), "bootstrap")


def wilson(share: float, count: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` independent trials."""
    z = NormalDist().inv_cdf((1.0 + confidence) / 2)
    scale = 1.0 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    spread = share * (1.0 - share) / count + z * z / (4 * count * count)
    half = z * math.sqrt(spread) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
