"""The error tree: bases, exit codes, the way between processes, and who raises them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_rl.utils import exceptions
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
    assert set(codes.values()) == {1, 2}


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


def no_such_receiver() -> None:
    from nemo_rl.backends.refit.base import RefitLink, open_receiver

    link = RefitLink(
        transport="gloo",
        stages=(),
        num_receivers=1,
        host="127.0.0.1",
        port=1,
        group="g.0",
    )
    open_receiver(link, 1)


RAISED_BY: dict[str, Callable[[], None]] = {
    "ConfigurationError": empty_model_name,
    "DataError": missing_data_file,
    "CheckpointError": missing_trainer_state,
    "LaunchError": unknown_site,
    "TrainingError": failing_callback,
    "RewardError": failing_reward,
    "RefitError": no_such_receiver,
    "WorkerError": failing_worker,
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
        line for line in (exceptions.__doc__ or "").splitlines() if "Error" in line
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
