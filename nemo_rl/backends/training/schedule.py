"""The learning rate of an update, set in an optimizer; knows no engine."""

from __future__ import annotations

from typing import Any

from nemo_rl.config.policy import PolicyConfig
from nemo_rl.config.schedule import learning_rate_at


def set_learning_rate(optimizer: Any, policy: PolicyConfig, updates: int) -> float:
    """Set the rate of the next update; returns it.

    Args:
        optimizer: has ``param_groups``.
        policy: peak rate and schedule.
        updates: updates already made.
    """
    rate = learning_rate_at(updates, policy.optimizer.kwargs.lr, policy.scheduler)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate
