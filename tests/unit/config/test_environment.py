"""The env section."""

import pytest

from nemo_rl.config.environment import EnvConfig, weighted_section
from nemo_rl.utils.exceptions import ConfigurationError


@pytest.mark.parametrize("path", ["rewards:score", "pkg.rewards.score", "r.py:f"])
def test_reward_paths(path: str) -> None:
    assert EnvConfig(reward_fn=path).reward_fn == path


@pytest.mark.parametrize("path", ["score", ":score", "rewards:"])
def test_reward_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(ConfigurationError, match="does not name a function. Expected"):
        EnvConfig(reward_fn=path)


def test_one_way_to_score() -> None:
    with pytest.raises(
        ConfigurationError, match="name='math' and reward_fn='a:b' both"
    ):
        EnvConfig(name="math", reward_fn="a:b")


def test_math_workers() -> None:
    config = EnvConfig.from_mapping({"math": {"num_workers": 2}})
    assert config.math is not None and config.math.num_workers == 2


def test_a_section_chooses() -> None:
    assert EnvConfig().chosen is None
    assert EnvConfig(math={}).chosen == "math"
    assert EnvConfig(name="code", code={}, math={}).chosen == "code"
    assert EnvConfig(tasks={"a": {"math": {}}}).chosen == "tasks"
    section, weight = weighted_section({"math": {"num_workers": 2}, "weight": 3})
    assert (section.math.num_workers, weight) == (2, 3.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"math": {}, "code": {}}, "math and code both score responses; set name"),
        ({"reward_fn": "a:b", "code": {}}, "reward_fn and code both score"),
        ({"name": "math", "tasks": {"a": {}}}, "and tasks both .* {default: {name: m"),
        ({"tasks": {"a": {"mth": {}}}}, "tasks.a: mth is not a field. Did you mean"),
        ({"tasks": {"a": {"tasks": {"b": {}}}}}, "tasks.a: tasks can stand only in"),
        ({"tasks": {"a": {"weight": 2}}}, "tasks.a.weight is not a field"),
        ({"multi_reward": {"a": {"weight": "x"}}}, "multi_reward.a: weight='x' is no"),
        ({"multi_reward": {"a": "math"}}, "multi_reward.a: weight='math' is no"),
        ({"math": {"num_workers": 0}}, "math.num_workers"),
        ({"code": {"network": "no"}}, "code.network='no' is not one of"),
        ({"reward_model": {}}, "reward_model.model_name is required: Hugging Face"),
    ],
)
def test_contradictions(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EnvConfig.from_mapping(values)
