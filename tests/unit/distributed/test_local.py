"""LocalCluster obeys the worker protocol in one process."""

import os

import pytest

from nemo_rl.distributed.interfaces import VirtualCluster, WorkerGroup
from nemo_rl.distributed.local import LocalCluster
from nemo_rl.utils.exceptions import DataError, ResourceError, WorkerError


class Worker:
    def __init__(self, rank_info, factor=1):
        if factor == 0:
            raise ZeroDivisionError("no factor")
        self.rank_info, self.factor, self.closed = rank_info, factor, []

    def times(self, x, plus=0):
        return self.factor * x + plus

    def user_mistake(self):
        raise DataError("row 3 is bad")

    def bug(self):
        return {}["missing"]

    def variable(self, name):
        return os.environ.get(name)

    def shutdown(self):
        self.closed.append(True)


@pytest.fixture
def group():
    cluster = LocalCluster()
    yield cluster.start_workers(Worker, init_kwargs={"factor": 3})
    cluster.shutdown()


def test_it_satisfies_the_protocols(group):
    assert isinstance(LocalCluster(), VirtualCluster)
    assert isinstance(group, WorkerGroup)


def test_calls_return_in_rank_order(group):
    assert group.size == 1
    assert group.run_all("times", 2, plus=1) == [7]
    assert group.run_per_rank("times", [(5,)]) == [15]
    assert group.run_one(0, "times", 1) == 3
    info = group.worker.rank_info
    assert (info.rank, info.world_size, info.use_gpu) == (0, 1, False)


def test_own_errors_keep_their_type_and_gain_a_place(group):
    with pytest.raises(DataError, match=r"row 3 is bad \(rank 0 on host .+\)"):
        group.run_all("user_mistake")


def test_foreign_errors_become_worker_errors(group):
    with pytest.raises(WorkerError, match=r"failed in bug\(\): KeyError") as caught:
        group.run_all("bug")
    assert 'return {}["missing"]' in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_failing_constructor_is_named():
    with pytest.raises(WorkerError, match=r"__init__\(\): ZeroDivisionError"):
        LocalCluster().start_workers(Worker, init_kwargs={"factor": 0})


def test_wrong_ranks_are_refused(group):
    with pytest.raises(WorkerError, match="no rank 1"):
        group.run_one(1, "times", 1)
    with pytest.raises(WorkerError, match="arguments for 2 ranks"):
        group.run_per_rank("times", [(1,), (2,)])
    with pytest.raises(ResourceError, match="2 workers do not fit"):
        LocalCluster().start_workers(Worker, num_workers=2)


def test_env_lasts_until_shutdown():
    cluster = LocalCluster()
    group = cluster.start_workers(Worker, env={"SOME_VARIABLE": "1"})
    worker = group.worker
    assert group.run_all("variable", "SOME_VARIABLE") == ["1"]
    cluster.shutdown()
    cluster.shutdown()
    assert worker.closed == [True] and "SOME_VARIABLE" not in os.environ
    with pytest.raises(WorkerError, match="has been shut down"):
        group.run_all("times", 1)
