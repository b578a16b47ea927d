"""Weighted sums of rewards, each one's mean under its name."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.environments.functional_reward import FunctionalRewardWrapper
from nemo_rl.environments.interfaces import last_turn
from nemo_rl.environments.multi_reward import MultiRewardEnvironment
from nemo_rl.utils.exceptions import RewardError

LOGS = [[{"role": "assistant", "content": text}] for text in ("ab", "a")]


def wrapped(function):
    return FunctionalRewardWrapper(function)


def test_weighted_sum_and_the_parts():
    environment = MultiRewardEnvironment(
        {
            "length": (wrapped(lambda prompt, response: len(response)), 0.5),
            "short": (wrapped(lambda prompt, response: len(response) < 2), -2.0),
        }
    )
    returned = environment.step(LOGS, [{}, {}])
    assert returned.rewards.tolist() == [1.0, 0.5 - 2.0]
    assert returned.metrics["length/reward"].tolist() == [2.0, 1.0]
    assert returned.metrics["short/reward"].tolist() == [0.0, 1.0]
    environment.shutdown()


def test_a_game_cannot_be_added_up():
    class Game:
        def step(self, message_log_batch, metadata):
            ended = last_turn([0.0, 0.0])
            return ended._replace(
                observations=[{"role": "user", "content": ""}] * 2,
                terminateds=torch.tensor([True, False]),
            )

    with pytest.raises(RewardError, match="multi_reward.game plays several turns"):
        MultiRewardEnvironment({"game": (Game(), 1.0)}).step(LOGS, [{}, {}])
