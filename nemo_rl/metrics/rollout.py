"""What a batch of completions looks like: reward, length, truncation, pass@k.

Takes lists, numpy arrays or CPU tensors of length B; knows no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def rollout_metrics(
    rewards: Any,
    *,
    response_lengths: Any,
    truncated: Any,
    group: Any,
) -> dict[str, float]:
    """Metrics of one step's completions.

    Args:
        rewards: [B] rewards.
        response_lengths: [B] generated tokens, the end token included.
        truncated: [B] whether the length limit ended the response.
        group: [B] index of the prompt each completion answers.

    Returns:
        reward, reward_std, reward_min, reward_max; response_length and
        response_length_min, response_length_max; truncated_fraction;
        unanimous_fraction, the share of prompts whose completions all have the same
        reward (their advantage is 0: nothing is learned from them); num_completions.

    Raises:
        ValueError: no completions, or fields of different lengths.
    """
    reward = np.asarray(rewards, dtype=np.float64)
    lengths = np.asarray(response_lengths, dtype=np.float64)
    cut = np.asarray(truncated, dtype=np.float64)
    prompts = np.asarray(group)
    sizes = {reward.shape, lengths.shape, cut.shape, prompts.shape}
    if len(sizes) != 1 or reward.ndim != 1 or reward.size == 0:
        raise ValueError(
            "rewards, response_lengths, truncated and group must have one value per "
            f"completion and at least one; their shapes are {sorted(sizes)}"
        )
    _, inverse = np.unique(prompts, return_inverse=True)
    count = inverse.max() + 1
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, inverse, reward)
    np.maximum.at(high, inverse, reward)
    return {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std()),
        "reward_min": float(reward.min()),
        "reward_max": float(reward.max()),
        "response_length": float(lengths.mean()),
        "response_length_min": float(lengths.min()),
        "response_length_max": float(lengths.max()),
        "truncated_fraction": float(cut.mean()),
        "unanimous_fraction": float((low == high).mean()),
        "num_completions": float(reward.size),
    }


def pass_at_k(correct: Sequence[int], total: Sequence[int], k: int) -> float:
    """Chance that at least one of k samples is right, averaged over prompts.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021, "Evaluating
    Large Language Models Trained on Code", section 2.1.

    Args:
        correct: right completions of each prompt (c).
        total: completions of each prompt (n), each at least k.
        k: number of samples.

    Raises:
        ValueError: no prompts, k below 1, or a prompt with fewer than k completions.
    """
    if not correct or len(correct) != len(total):
        raise ValueError(
            f"pass@k needs prompts: {len(correct)} correct, {len(total)} totals"
        )
    if k < 1 or min(total) < k:
        raise ValueError(
            f"pass@{k} needs k >= 1 and at least k completions of every prompt; the "
            f"fewest are {min(total)}"
        )
    chances = [
        1.0 - math.comb(n - c, k) / math.comb(n, k)
        for c, n in zip(correct, total, strict=True)
    ]
    return math.fsum(chances) / len(chances)


def group_pass_at_k(rewards: Any, group: Any, k: int, *, threshold: float) -> float:
    """pass@k of a rollout batch; a completion is right from `threshold` on.

    Args:
        rewards: [B] rewards.
        group: [B] index of the prompt.
        k: number of samples.
        threshold: the lowest reward of a right completion.
    """
    right = np.asarray(rewards, dtype=np.float64) >= threshold
    _, inverse = np.unique(np.asarray(group), return_inverse=True)
    total = np.bincount(inverse)
    correct = np.bincount(inverse, weights=right).astype(int)
    return pass_at_k(correct.tolist(), total.tolist(), k)
