"""The cluster section to a virtual cluster; no Ray is started here."""

from __future__ import annotations

import pytest

from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.layout import ClusterLayout
from nemo_rl.distributed import ray_session
from nemo_rl.infra.resources import ResourceManager


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Fail where something would start or join Ray."""

    def refuse(*args, **kwargs):
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(ray_session, "connect", refuse)


@pytest.mark.parametrize(
    ("fields", "size", "gpus"),
    [
        ({"gpus_per_node": 8, "num_nodes": 2}, 16, True),
        ({"gpus_per_node": 0, "cpu_workers_per_node": 3}, 3, False),
    ],
)
def test_cluster_has_a_place_per_worker_and_reserves_nothing(fields, size, gpus):
    resources = ResourceManager(ClusterConfig(**fields))
    cluster = resources.allocate()
    assert resources.allocate() is cluster
    assert cluster.world_size == size
    assert cluster.use_gpus is gpus


def test_release_ends_workers_then_ray_once(monkeypatch):
    done = []
    monkeypatch.setattr(ray_session, "disconnect", lambda: done.append("ray"))
    resources = ResourceManager(ClusterConfig(gpus_per_node=1))
    cluster = resources.allocate()
    monkeypatch.setattr(cluster, "shutdown", lambda: done.append("workers"))
    resources.release()
    resources.release()
    assert done == ["workers", "ray"]
    assert resources.allocate() is not cluster


def test_generation_has_places_beside_those_of_training():
    config = ClusterConfig(gpus_per_node=0, cpu_workers_per_node=3)
    cluster = ResourceManager(config, ClusterLayout([2], [1])).allocate()
    assert cluster.generation is not None
    assert (cluster.world_size, cluster.generation.world_size) == (2, 1)
