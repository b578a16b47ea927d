"""Answers of parts, put together in the order of the conversations."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rl.environments.interfaces import EnvironmentReturn, last_turn
from nemo_rl.environments.merging import Part, merge_returns
from nemo_rl.utils.exceptions import RewardError


def going_on(count: int) -> EnvironmentReturn:
    return EnvironmentReturn(
        observations=[{"role": "user", "content": str(n)} for n in range(count)],
        metadata=[{"n": n} for n in range(count)],
        next_stop_strings=[["."]] * count,
        rewards=torch.arange(count, dtype=torch.float32),
        terminateds=torch.zeros(count, dtype=torch.bool),
        answers=None,
    )


def test_rows_find_their_places():
    ended = last_turn([5.0], answers=["x"], metrics={"m": [3.0]})
    merged = merge_returns(
        [Part("a", [2, 0], going_on(2)), Part("b", [1], ended, "b/")], 3
    )
    assert merged.rewards.tolist() == [1.0, 5.0, 0.0]
    assert merged.terminateds.tolist() == [False, True, False]
    assert [o["content"] for o in merged.observations] == ["1", "", "0"]
    assert merged.metadata == [{"n": 1}, None, {"n": 0}]
    assert merged.next_stop_strings == [["."], None, ["."]]
    assert merged.answers == [None, "x", None]
    assert merged.metrics["b/m"][1] == 3.0 and math.isnan(merged.metrics["b/m"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [1.0]}, "1 rewards for 2"),
        ({"terminateds": None}, "0 terminateds for 2"),
        ({"observations": []}, "0 observations for 2"),
        ({"metadata": [None]}, "1 metadata for 2"),
        ({"metrics": {"m": [1.0]}}, r"1 metrics\['m'\] for 2"),
    ],
)
def test_another_number_of_answers_names_its_part(change, message):
    part = Part("worker 2", [0, 1], going_on(2)._replace(**change))
    with pytest.raises(RewardError, match=f"worker 2.step returned {message}"):
        merge_returns([part], 2)
