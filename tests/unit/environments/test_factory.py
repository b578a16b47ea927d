"""Who decides what scores a run."""

import pytest

from nemo_rl.environments import EnvironmentInterface, EnvironmentReturn
from nemo_rl.environments.factory import make_environment
from nemo_rl.environments.gym_environment import GymEnvironment
from nemo_rl.environments.math_environment import MathEnvironment
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
        ({"name": "sliding"}, "Did you mean sliding_puzzle"),
        ({"reward_fn": "absent_module:f"}, "no module named absent_module"),
        ({"math": {}, "timeout_s": 3}, "env.timeout_s=3 would have no effect: num_w"),
        ({"tasks": {"a": {"math": {}}}, "num_workers": 2}, "beside several environ"),
        (
            {"multi_reward": {"a": {"math": {}}}, "gpus_per_worker": 1},
            "gpus_per_worker=1 would have no effect: it belongs",
        ),
    ],
)
def test_a_run_without_a_score_is_refused(config, message):
    with pytest.raises(ConfigurationError, match=message):
        make_environment(config)


def test_a_section_chooses_its_environment():
    assert isinstance(make_environment({"math": {}}), MathEnvironment)
    named = make_environment({"name": "sliding_puzzle", "kwargs": {"max_moves": 3}})
    assert named.config == {"max_moves": 3}
    section = make_environment({"sliding_puzzle": {"max_moves": 4}})
    assert section.config == {"max_moves": 4}
    task = make_environment({}, default="reasoning_gym:chain_sum")
    assert task.config["require_tags"] is True


def test_tasks_and_sums_are_made_of_sections(tmp_path):
    (tmp_path / "more_rewards.py").write_text(
        "def length(prompt, response):\n    return len(response)\n"
    )
    own = {"reward_fn": "more_rewards:length"}
    tasks = {"length": own, "sum": {"multi_reward": {"a": own, "b": own}}}
    environment = make_environment(
        {"tasks": tasks}, default="exact_match", search_dir=tmp_path
    )
    rewards = environment.step(
        LOG * 3,
        [{**META[0], "task_name": name} for name in ("length", "sum", "other")],
    ).rewards
    assert rewards.tolist() == [1.0, 2.0, 1.0]
    weighted = make_environment(
        {"multi_reward": {"a": {**own, "weight": 3}, "b": {"name": "exact_match"}}},
        search_dir=tmp_path,
    )
    assert reward(weighted) == 4.0
    by_task = make_environment(None, reward_fn={"default": lambda p, r: 2.0})
    assert reward(by_task) == 2.0


def test_an_environment_of_one_action_is_wrapped():
    class Plays(EnvironmentInterface):
        def step(self, action):
            return "again", 0.5, False, {}

    for given in (Plays, Plays()):
        made = make_environment(None, reward_fn=given)
        assert isinstance(made, GymEnvironment)
        assert reward(made) == 0.5
