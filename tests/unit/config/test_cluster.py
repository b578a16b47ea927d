"""The cluster section."""

import pytest

from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.loading import parse_yaml
from nemo_rl.utils.exceptions import ConfigurationError


def test_gpu_nodes() -> None:
    cluster = ClusterConfig(num_nodes=2)
    assert cluster.use_gpus
    assert (cluster.workers_per_node, cluster.world_size) == (8, 16)


def test_cpu_nodes() -> None:
    cluster = ClusterConfig(gpus_per_node=0, cpu_workers_per_node=2, num_nodes=3)
    assert not cluster.use_gpus
    assert (cluster.workers_per_node, cluster.world_size) == (2, 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus_per_node": 0}, "leave no worker. Set cpu_workers_per_node to 1"),
        ({"cpu_workers_per_node": 2}, "gpus_per_node=8 and cpu_workers_per_node=2"),
        ({"time": "soon"}, "time='soon' is no time limit. Expected 'HH:MM:SS'"),
        ({"memory_per_node": "lots"}, "memory_per_node='lots' is no amount"),
        ({"cpus_per_node": 4}, "cpus_per_node given, but exclusive=true has all"),
        ({"num_nodes": 0}, "num_nodes=0: expected greater than or equal to 1"),
    ],
)
def test_clusters_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ClusterConfig(**values)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("04:00:00", "04:00:00"),
        ("'04:00:00'", "04:00:00"),
        ("12:30:15", "12:30:15"),
        ("1-00:00:00", "1-00:00:00"),
        ("90", "90"),
    ],
)
def test_time_as_yaml_reads_it(text: str, time: str) -> None:
    assert ClusterConfig(time=parse_yaml(text, "test")).time == time
