"""The error tree: bases, exit codes, the way between processes, and who raises them."""

import pickle
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.utils import exceptions, pulse
from nemo_rl.utils.exceptions import NemoRLError

ALL = [
    value
    for value in vars(exceptions).values()
    if isinstance(value, type) and issubclass(value, NemoRLError)
]


@pytest.mark.parametrize("cls", ALL)
def test_survives_pickling(cls: type[NemoRLError]) -> None:
    copy = pickle.loads(pickle.dumps(cls("the cause")))
    assert type(copy) is cls
    assert str(copy) == "the cause"


def test_users_mistakes_end_with_2_and_the_rest_with_1() -> None:
    codes = {cls.__name__: cls.exit_code for cls in ALL}
    assert {name for name, code in codes.items() if code == 2} == {
        "ConfigurationError",
        "DataError",
        "CheckpointError",
        "LaunchError",
        "RewardError",
    }
    assert {name for name, code in codes.items() if code not in (1, 2)} == {"Hung"}
    assert codes["Hung"] == 75


def test_builtin_bases() -> None:
    assert issubclass(exceptions.DataError, ValueError)
    assert issubclass(exceptions.WorkerError, RuntimeError)
    assert issubclass(exceptions.ResourceError, RuntimeError)


def test_the_docstring_names_every_class() -> None:
    assert all(cls.__name__ in (exceptions.__doc__ or "") for cls in ALL)


class Worker:
    """One whose work fails."""

    def __init__(self, rank: Any) -> None: ...

    def work(self) -> None:
        raise KeyError("a bug")


def empty_model_name() -> None:
    from nemo_rl import GRPOTrainer

    GRPOTrainer({"policy": {"model_name": ""}})


def missing_data_file() -> None:
    from nemo_rl.data.datasets import load_dataset

    load_dataset("./nowhere.jsonl")


def missing_trainer_state() -> None:
    from nemo_rl.trainers.state import TrainState

    TrainState.load(Path("nowhere", "trainer_state.json"))


def unknown_site() -> None:
    from nemo_rl.launch.site import load_site

    load_site("nowhere", Path("nowhere"))


def failing_callback() -> None:
    from nemo_rl.trainers import LambdaCallback
    from nemo_rl.trainers.callbacks import CallbackList

    callbacks = CallbackList([LambdaCallback(on_step_end=lambda *args: 1 / 0)])
    callbacks.on_step_end(None, 1, {})


def failing_reward() -> None:
    from nemo_rl.environments import FunctionalRewardWrapper

    environment = FunctionalRewardWrapper(lambda prompt, response: 1 / 0)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    environment.step([talk], [{}])


def failing_worker() -> None:
    from nemo_rl.distributed.local import LocalCluster

    LocalCluster().start_workers(Worker).run_all("work")


def too_many_workers() -> None:
    from nemo_rl.distributed.local import LocalCluster

    LocalCluster().start_workers(Worker, num_workers=2)


def dead_worker() -> None:
    from nemo_rl.distributed import failures

    raise failures.dead_worker("train", "killed", rank=0, place=None, log_tail="")


def weights_from_nowhere() -> None:
    from nemo_rl.backends.refit.base import RefitLink, TensorSpec, open_sender

    stages = ((TensorSpec("w", "float32", (2,)),),)
    link = RefitLink(
        transport="gloo",
        stages=stages,
        num_receivers=1,
        host="127.0.0.1",
        port=1,
        group="g",
        timeout_s=0.2,
    )
    open_sender(link, 0).send([("w", torch.zeros(2))])


def other_weights() -> None:
    from nemo_rl.backends.refit.held import EngineWeights
    from nemo_rl.config.refit import GuardConfig
    from nemo_rl.models.policy.guard import Guard
    from nemo_rl.models.policy.guard_findings import Transferred

    config = GuardConfig(action="halt", canary_prompts=0)
    with tempfile.TemporaryDirectory() as scratch:
        Guard(config, log_dir=scratch).after_refit(
            step=1,
            generate=lambda prompts: prompts,
            score=lambda batch: batch,
            transferred=Transferred(
                version=1, sent={"w": 1}, engines=[EngineWeights(digests={"w": 2})]
            ),
        )


def hung() -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as p:
        p.setenv(pulse.FOLDER, scratch)
        pulse.start("driver", answers_hang=True)
        try:
            signal.raise_signal(pulse.HANG)
        finally:
            pulse.stop()


RAISED_BY: dict[str, Callable[[], None]] = {
    "ConfigurationError": empty_model_name,
    "DataError": missing_data_file,
    "CheckpointError": missing_trainer_state,
    "LaunchError": unknown_site,
    "TrainingError": failing_callback,
    "RewardError": failing_reward,
    "Hung": hung,
    "RefitError": weights_from_nowhere,
    "ConsistencyError": other_weights,
    "WorkerError": failing_worker,
    "WorkerDied": dead_worker,
    "ResourceError": too_many_workers,
}


@pytest.mark.parametrize("name", RAISED_BY)
def test_each_is_raised_where_its_docstring_says(name: str) -> None:
    kind = getattr(exceptions, name)
    with pytest.raises(NemoRLError) as caught:
        RAISED_BY[name]()
    assert type(caught.value) is kind and str(caught.value)


def test_none_is_left_out() -> None:
    assert {*RAISED_BY, "NemoRLError"} == {cls.__name__ for cls in ALL}


def test_the_drawn_tree_is_the_tree_of_classes() -> None:
    """Depth in the drawing, base and exit code, line by line."""
    lines = [
        line
        for line in (exceptions.__doc__ or "").splitlines()
        if "Error" in line or "Died" in line
    ]
    parents: list[type] = []
    for line in lines:
        name, code = line.replace("│", " ").strip("└├─ ").split()[:2]
        depth = (len(line) - len(line.lstrip(" │└├─"))) // 4 - 1
        cls = getattr(exceptions, name)
        assert cls.exit_code == int(code), name
        if depth:
            assert cls.__bases__[0] is parents[depth - 1], name
        parents[depth:] = [cls]
