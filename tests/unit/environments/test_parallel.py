"""Environments in actors of a real Ray: the same answers, deaths, time-outs.

One Ray session serves the module. Not covered: several hosts and GPUs.
"""

from __future__ import annotations

import logging
from functools import partial

import pytest

from nemo_rl.distributed import ray_session
from nemo_rl.environments.factory import make_environment
from nemo_rl.environments.parallel import ParallelEnvironment
from nemo_rl.utils.exceptions import (
    ConfigurationError,
    DataError,
    RewardError,
    WorkerError,
)

MODULE = """
import os, pathlib, time
from nemo_rl.environments.interfaces import EnvironmentInterface, last_turn
from nemo_rl.utils.exceptions import DataError

class Told(EnvironmentInterface):
    '''Does what the last message says; 1 for every letter.'''

    def step(self, message_log_batch, metadata):
        said = [log[-1]["content"] for log in message_log_batch]
        for text in said:
            if text == "die":
                os._exit(1)
            if text.startswith("die once "):
                flag = pathlib.Path(text.removeprefix("die once "))
                if not flag.exists():
                    flag.touch()
                    os._exit(1)
            if text == "sleep":
                time.sleep(600)
            if text == "ours":
                raise DataError("row 3 is bad")
            if text == "bug":
                raise KeyError("a bug")
        lengths = [len(text) for text in said]
        return last_turn(
            lengths, answers=said, metrics={"pid": [os.getpid()] * len(said)}
        )

    def global_post_process_and_metrics(self, batch):
        return batch, {"here": 1.0}
"""


@pytest.fixture(scope="module")
def recipe_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "told_environment.py").write_text(MODULE)
    return folder


@pytest.fixture(scope="module")
def told(recipe_dir):
    pytest.importorskip("ray")
    ray_session.connect(num_cpus=1)
    environment = make_environment(
        {"reward_fn": "told_environment:Told", "num_workers": 2, "timeout_s": 5},
        search_dir=recipe_dir,
    )
    assert isinstance(environment, ParallelEnvironment)
    yield environment
    environment.shutdown()
    ray_session.disconnect()


def step(environment, *said):
    logs = [[{"role": "assistant", "content": text}] for text in said]
    return environment.step(logs, [{} for _ in said])


def test_without_ray_the_environment_runs_here(recipe_dir):
    environment = make_environment(
        {"reward_fn": "told_environment:Told", "num_workers": 3},
        search_dir=recipe_dir,
    )
    assert step(environment, "a", "bc").rewards.tolist() == [1.0, 2.0]


def test_conversations_are_divided_and_come_back_in_order(told):
    said = ["a", "bc", "def", "g", "hi"]
    returned = step(told, *said)
    assert returned.rewards.tolist() == [1, 2, 3, 1, 2]
    assert returned.answers == said
    pids = returned.metrics["pid"].tolist()
    assert pids[:3] == [pids[0]] * 3 and pids[3:] == [pids[3]] * 2
    assert pids[0] != pids[3]
    # Fewer conversations than actors.
    assert step(told, "one").rewards.tolist() == [3.0]
    assert told.global_post_process_and_metrics({}) == ({}, {"here": 1.0})


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("ours", DataError, "row 3 is bad"),
        ("bug", RewardError, "worker 2 of 2 of the environment told_.* KeyError: 'a b"),
    ],
)
def test_errors_of_an_environment_are_raised_here(told, said, kind, message):
    with pytest.raises(kind, match=message):
        step(told, "a", said)


def test_an_actor_that_dies_is_named_and_started_again_once(told, tmp_path, caplog):
    flag = f"die once {tmp_path / 'flag'}"
    with caplog.at_level(logging.WARNING):
        assert step(told, "a", flag).rewards.tolist() == [1.0, len(flag)]
    assert "worker 2 of 2 of the environment told_environment:Told (pid" in caplog.text
    assert "died and is started again" in caplog.text
    with pytest.raises(WorkerError, match="worker 2 of 2.* died for the second time"):
        step(told, "a", "die")


def test_what_cannot_be_sent_is_refused(told):
    import threading

    lock = threading.Lock()

    def locked(prompt, response):
        with lock:
            return 1.0

    environment = make_environment({"num_workers": 1}, reward_fn=locked)
    with pytest.raises(ConfigurationError, match="environment locked cannot be sent"):
        step(environment, "a")


def test_a_step_that_takes_too_long(recipe_dir, told):
    build = partial(
        make_environment, {"reward_fn": "told_environment:Told"}, search_dir=recipe_dir
    )
    slow = ParallelEnvironment(build, name="slow", num_workers=1, timeout_s=0.5)
    with pytest.raises(RewardError, match="1 of 1 of slow .pid.*within 0.5 s. Raise"):
        step(slow, "sleep")
