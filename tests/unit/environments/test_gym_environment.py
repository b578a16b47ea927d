"""Environments of the form step(action) -> observation, reward, done, info."""

from __future__ import annotations

import math
import pickle

import pytest

from nemo_rl.environments.gym_environment import GymEnvironment, takes_one_action
from nemo_rl.environments.interfaces import EnvironmentInterface
from nemo_rl.utils.exceptions import RewardError


class Guess(EnvironmentInterface):
    """The documented form: a subclass whose step takes an action."""

    def __init__(self, config):
        super().__init__(config)
        self.tries = 0

    def reset(self, row):
        self.secret = row["secret"]

    def step(self, action):
        self.tries += 1
        right = action.strip() == self.secret
        info = {"tries": self.tries, "note": "text"} if right else {}
        return "wrong", float(right), right, info


def logs(*responses):
    return [[{"role": "assistant", "content": text}] for text in responses]


def test_each_conversation_has_an_instance_of_its_own_that_travels():
    environment = GymEnvironment(Guess)
    metadata = [{"row": {"secret": "7"}}, {"row": {"secret": "3"}}]
    first = environment.step(logs("7", "7"), metadata)
    assert first.rewards.tolist() == [1.0, 0.0]
    assert first.terminateds.tolist() == [True, False]
    assert first.observations[1] == {"role": "user", "content": "wrong"}
    assert first.metrics["tries"][0] == 1 and math.isnan(first.metrics["tries"][1])
    assert list(first.metrics) == ["tries"]
    # Any worker can play the next turn.
    carried = pickle.loads(pickle.dumps(first.metadata[1]))
    second = GymEnvironment(Guess).step(logs("3"), [{**metadata[1], **carried}])
    assert second.rewards.tolist() == [1.0] and second.metrics["tries"].tolist() == [2]


def test_an_instance_is_copied_and_a_message_passed_on():
    class Counter:
        count = 0

        def step(self, action):
            self.count += 1
            return {"role": "tool", "content": action}, self.count, False, None

    own = Counter()
    returned = GymEnvironment(own).step(logs("a", "b"), [{}, {}])
    assert own.count == 0 and returned.rewards.tolist() == [1.0, 1.0]
    assert returned.observations[1] == {"role": "tool", "content": "b"}


def test_which_step_is_meant():
    class Batched:
        def step(self, message_log_batch, metadata):
            return None

    class Short:
        def step(self, message_log_batch, metadata=None):
            return None

    assert takes_one_action(Guess) and takes_one_action(Guess({}))
    assert not any(map(takes_one_action, (Short, Batched, len)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (1.0, r"returned 1.0, expected \(observation, reward, done, info\). To step"),
        (("o", 1.0, True), "expected .*define step.self, message_log_batch, metadata"),
        (("o", "1", True, {}), "the reward must be a finite number"),
        (("o", math.nan, True, {}), "the reward must be a finite number"),
    ],
)
def test_another_answer_shows_the_right_signature(answer, message):
    class Wrong:
        def step(self, action):
            return answer

    with pytest.raises(
        RewardError, match=f"Wrong.step {message}|Wrong.step.*{message}"
    ):
        GymEnvironment(Wrong).step(logs("a"), [{}])
