"""docs/environments.md: its recipes are valid and its code works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.config.environment import EnvConfig, MathEnvConfig
from nemo_rl.environments.factory import _BUILT_IN, make_environment

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text("utf-8")
RECIPES = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
CODE = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text.split()[1].rstrip(":"))
def test_recipes_are_valid(text: str) -> None:
    values = yaml.safe_load(text)
    config = GRPOMasterConfig.from_mapping({**values, "policy": {"model_name": "m"}})
    assert config.env.reward_fn or config.env.chosen


def test_the_table_names_every_environment() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M)
    assert rows == list(_BUILT_IN)
    assert set(rows) - {"exact_match"} < set(EnvConfig.model_fields)
    assert MathEnvConfig().timeout_s == 10


@pytest.fixture(scope="module")
def page() -> dict:
    names: dict = {"__name__": "page"}
    for text in CODE:
        exec(text, names)  # noqa: S102 - our own page
    return names


def step(thing, responses, metadata):
    logs = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        for text in responses
    ]
    return make_environment(None, reward_fn=thing).step(logs, metadata)


def test_functions_and_classes(page: dict) -> None:
    metadata = [{"answer": "4"}] * 2
    assert step(page["score"], ["4 ", "5"], metadata).rewards.tolist() == [1.0, 0.0]
    brief = step(page["Brevity"], ["one two three"], metadata[:1])
    assert brief.rewards.tolist() == [0.25] and brief.metrics["words"].tolist() == [3]


def test_games_of_several_turns(page: dict) -> None:
    metadata = [{"answer": "4", "tries": 4}, {"answer": "4"}, {"answer": "4"}]
    turn = step(page["GuessTheDigit"], ["5", "5", "4"], metadata)
    assert turn.terminateds.tolist() == [True, False, True]
    assert turn.rewards.tolist() == [0.0, 0.0, 1.0]
    assert turn.metadata[1] == {"tries": 1}
    game = step(page["OneGame"], ["5", "4"], [{"row": {"answer": "4"}}] * 2)
    assert game.terminateds.tolist() == [False, True]
    assert game.observations[0] == {"role": "user", "content": "No. Try again."}
