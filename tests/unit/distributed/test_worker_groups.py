"""RayWorkerGroup on a real Ray: real actors, real deaths, a real token.

One Ray session serves the module. Not covered: several hosts (tests/slurm) and GPUs.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from nemo_rl.distributed import ray_session
from nemo_rl.distributed.interfaces import VirtualCluster, WorkerGroup
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
from nemo_rl.utils.exceptions import DataError, ResourceError, WorkerError

ray = pytest.importorskip("ray")

MODULE = """
import os, sys, time
import torch
import torch.distributed as dist
from nemo_rl.utils.exceptions import DataError


class Worker:
    def __init__(self, info, factor=1):
        self.info, self.factor = info, factor
        dist.init_process_group(
            "gloo", init_method=info.init_method, rank=info.rank,
            world_size=info.world_size,
        )

    def facts(self):
        return self.info, os.environ.get("OMP_NUM_THREADS"), [
            name for name in os.environ if name.startswith("SLURM_")
        ], os.environ.get("EXTRA")

    def summed(self, value):
        total = torch.tensor(float(value * self.factor))
        dist.all_reduce(total)
        return total.item()

    def die(self, who):
        if self.info.rank == who:
            sys.stderr.write("last words\\n")
            sys.stderr.flush()
            os.kill(os.getpid(), 9)
        dist.barrier()

    def fail(self, who, kind):
        if self.info.rank == who:
            if kind == "ours":
                raise DataError("row 3 is bad")
            raise KeyError("a bug")
        dist.barrier()

    def sleep(self, seconds):
        time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def worker_class(tmp_path_factory):
    """A worker in a module beside a recipe: importable in the driver by sys.path."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "ray_test_worker.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    import ray_test_worker

    yield ray_test_worker.Worker
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def session():
    os.environ["SLURM_FAKE_VARIABLE"] = "1"
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    mine = signal.getsignal(signal.SIGTERM)
    ray_session.connect(num_cpus=4, object_store_memory=100 * 2**20)
    assert signal.getsignal(signal.SIGTERM) is mine
    signal.signal(signal.SIGTERM, handler)
    yield
    ray_session.disconnect()
    del os.environ["SLURM_FAKE_VARIABLE"]


@pytest.fixture(scope="module")
def cluster(session):
    cluster = RayVirtualCluster([2], use_gpus=False)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def group(cluster, worker_class):
    group = cluster.start_workers(
        worker_class, env={"EXTRA": "yes"}, init_kwargs={"factor": 2}
    )
    yield group
    group.shutdown()


def test_ranks_know_their_place_and_answer_in_order(cluster, group):
    assert isinstance(cluster, VirtualCluster) and isinstance(group, WorkerGroup)
    assert (cluster.world_size, group.size) == (2, 2)
    facts = group.run_all("facts")
    assert [info.rank for info, *_ in facts] == [0, 1]
    assert [info.local_rank for info, *_ in facts] == [0, 1]
    assert {info.master_port for info, *_ in facts} == {facts[0][0].master_port}
    for _, threads, slurm_names, extra in facts:
        assert (threads, slurm_names, extra) == ("1", [], "yes")
    assert group.run_per_rank("summed", [(1,), (10,)]) == [22.0, 22.0]
    assert group.run_one(1, "facts")[0].rank == 1
    with pytest.raises(WorkerError, match="no rank 2"):
        group.run_one(2, "facts")
    with pytest.raises(WorkerError, match="arguments for 1 ranks"):
        group.run_per_rank("summed", [(1,)])


def test_a_killed_rank_is_named_while_its_peer_waits(group):
    started = time.monotonic()
    with pytest.raises(
        WorkerError, match=r"rank 1 on host .* died in die\(\)"
    ) as caught:
        group.run_all("die", 1)
    assert time.monotonic() - started < 20
    assert "last words" in str(caught.value) and "What to do" in str(caught.value)
    with pytest.raises(WorkerError, match="has ended"):
        group.run_all("facts")


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("ours", DataError, r"row 3 is bad \(rank 1 on host"),
        ("foreign", WorkerError, r"rank 1 on host .* failed in fail\(\): KeyError"),
    ],
)
def test_an_error_of_one_rank_does_not_wait_for_the_others(group, kind, error, text):
    started = time.monotonic()
    with pytest.raises(error, match=text):
        group.run_all("fail", 1, kind)
    assert time.monotonic() - started < 20


def test_a_deadline_names_the_late_ranks(group):
    with pytest.raises(
        WorkerError, match=r"sleep\(\) did not end within 1 s on rank 0"
    ):
        group.run_per_rank("sleep", [(60,), (0,)], timeout_s=1)


def test_too_many_workers_or_nodes_are_refused(cluster, worker_class):
    with pytest.raises(ResourceError, match="3 workers do not fit"):
        cluster.start_workers(worker_class, num_workers=3)
    big = RayVirtualCluster([8, 8], use_gpus=True, num_gpus_per_node=8)
    with pytest.raises(ResourceError, match="asks for 2 node.*8 CPU 8 GPU.*Ray has 1"):
        big.placement_group()


def test_only_the_right_token_enters(session):
    address = ray.get_runtime_context().gcs_address
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    assert os.stat(token).st_mode & 0o077 == 0
    code = (
        "from nemo_rl.distributed import ray_session\n"
        f"ray_session.connect('{address}')\n"
        "import ray; print('entered', ray.cluster_resources()['CPU'])"
    )

    def client(**changes):
        variables = {k: v for k, v in os.environ.items() if "RAY_AUTH" not in k}
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={**variables, "RAY_AUTH_MODE": "token", **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # At once: each spends most of its time waiting for Ray.
    clients = {
        "right": client(RAY_AUTH_TOKEN_PATH=token),
        "wrong": client(RAY_AUTH_TOKEN="0" * 64),
        "none": client(HOME="/nonexistent"),
    }
    said = {name: one.communicate(timeout=120) for name, one in clients.items()}
    assert "entered 4.0" in said["right"][0]
    assert clients["wrong"].returncode != 0 and "entered" not in said["wrong"][0]
    assert "ResourceError" in said["wrong"][1]
    assert clients["none"].returncode != 0
    assert "refuses this process" in said["none"][1]
