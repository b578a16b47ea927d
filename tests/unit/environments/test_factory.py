"""Who decides what scores a run."""

import pytest

from nemo_rl.environments import EnvironmentInterface, EnvironmentReturn
from nemo_rl.environments.factory import make_environment
from nemo_rl.utils.exceptions import ConfigurationError

LOG = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "7"}]]
META = [{"answer": "7", "truncated": False}]


class Own(EnvironmentInterface):
    def step(self, message_log_batch, metadata):
        return EnvironmentReturn([], [], [], [0.25], [], None)


def reward(environment):
    return float(environment.step(LOG, META).rewards[0])


def test_code_beats_recipe_beats_dataset(tmp_path):
    (tmp_path / "my_rewards.py").write_text(
        "def half(prompt, response, scale=1):\n    return 0.5 * scale\n"
    )
    config = {"reward_fn": "my_rewards:half"}
    in_code = make_environment(config, reward_fn=lambda p, r: 2.0, search_dir=tmp_path)
    assert reward(in_code) == 2.0
    named = make_environment(config, default="exact_match", search_dir=tmp_path)
    assert reward(named) == 0.5 and named.name == "my_rewards:half"
    scaled = {**config, "kwargs": {"scale": 3}}
    assert reward(make_environment(scaled, search_dir=tmp_path)) == 1.5
    assert reward(make_environment({}, default="exact_match")) == 1.0
    assert reward(make_environment({"name": "exact_match"}, default=Own())) == 1.0


def test_environments_pass_and_classes_are_built():
    own = Own()
    assert make_environment(None, reward_fn=own) is own
    assert reward(make_environment(None, reward_fn=Own)) == 0.25
    built = make_environment({"kwargs": {"a": 1}}, reward_fn=Own)
    assert built.config == {"a": 1}
    batch, metrics = own.global_post_process_and_metrics({"x": 1})
    assert (batch, metrics) == ({"x": 1}, {})

    class Plain:
        def step(self, message_log_batch, metadata):
            return EnvironmentReturn([], [], [], [3.0], [], None)

    assert reward(make_environment(None, reward_fn=Plain())) == 3.0
    with pytest.raises(ConfigurationError, match="dict is a class without step"):
        make_environment(None, reward_fn=dict)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "Nothing scores the responses: pass reward_fn="),
        ({"name": "exact_mach"}, "Did you mean exact_match"),
        ({"math": {}}, "'math' is no environment of this version"),
        ({"reward_fn": "absent_module:f"}, "no module named absent_module"),
    ],
)
def test_a_run_without_a_score_is_refused(config, message):
    with pytest.raises(ConfigurationError, match=message):
        make_environment(config)
