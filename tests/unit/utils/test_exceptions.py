"""The error tree: bases, exit codes, and the way between processes."""

import pickle

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
