"""The env section."""

import pytest

from nemo_rl.config.environment import EnvConfig
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
