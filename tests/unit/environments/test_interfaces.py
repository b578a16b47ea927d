"""EnvironmentInterface: one method to write, the return type of the documentation."""

import pytest

from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    last_turn,
)


def test_step_is_all_a_subclass_must_write():
    with pytest.raises(TypeError, match="step"):
        EnvironmentInterface()

    class Own(EnvironmentInterface):
        def __init__(self, config):
            super().__init__(config)

        def step(self, message_log_batch, metadata):
            return None

    assert Own({"a": 1}).config == {"a": 1}


def test_the_return_has_the_documented_fields():
    assert EnvironmentReturn._fields[:6] == (
        "observations",
        "metadata",
        "next_stop_strings",
        "rewards",
        "terminateds",
        "answers",
    )
    assert EnvironmentReturn._field_defaults == {"metrics": None}


def test_a_last_turn_ends_every_conversation():
    ended = last_turn([1, 0.5], metrics={"m": [True, False]})
    assert ended.rewards.tolist() == [1.0, 0.5]
    assert ended.terminateds.tolist() == [True, True]
    assert ended.metadata == ended.next_stop_strings == [None, None]
    assert ended.metrics["m"].tolist() == [1.0, 0.0]
