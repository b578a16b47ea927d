"""RayVirtualCluster's arithmetic; its life on a real Ray is in test_worker_groups."""

import subprocess
import sys

import pytest

from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
from nemo_rl.utils.exceptions import ConfigurationError


def test_the_documented_constructors_agree():
    for cluster in (
        RayVirtualCluster([4]),
        RayVirtualCluster(gpus_per_node=4),
        RayVirtualCluster(
            bundle_ct_per_node_list=[4], use_gpus=True, num_gpus_per_node=4
        ),
    ):
        assert (cluster.world_size, cluster.num_nodes, cluster.use_gpus) == (4, 1, True)


def test_places_keep_the_ranks_of_a_node_together():
    cluster = RayVirtualCluster([2, 1], use_gpus=False, num_cpus_per_worker=3)
    assert cluster.places() == [0, 0, 1]
    assert cluster._bundles() == [{"CPU": 6.0}, {"CPU": 3.0}]
    assert RayVirtualCluster([2])._bundles() == [{"CPU": 2.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs bundle_ct_per_node_list"),
        ({"gpus_per_node": 2, "num_gpus_per_node": 4}, "two names of one number"),
        ({"bundle_ct_per_node_list": [8], "num_gpus_per_node": 4}, "8 workers on a"),
        ({"bundle_ct_per_node_list": [2, 0]}, "at least 1 worker"),
        ({"bundle_ct_per_node_list": []}, "at least 1 worker"),
        ({"gpus_per_node": 1, "num_cpus_per_worker": 0}, "must be at least 1"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        RayVirtualCluster(**arguments)


SCRIPT = """
import ray
from ray.cluster_utils import Cluster
from nemo_rl.distributed.topology import PLACE, labels
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster

nodes = [(2, "top.x"), (0, "top.y"), (1, "top.x"), (3, "top.y")]
inside = Cluster()
for place, switch in nodes:
    inside.add_node(num_cpus=1, labels=labels(place, switch))
ray.init(address=inside.address)
cluster = RayVirtualCluster([1] * 4, use_gpus=False)
where = {node["NodeID"]: node["Labels"][PLACE] for node in ray.nodes()}

@ray.remote(num_cpus=1)
def place():
    return where[ray.get_runtime_context().get_node_id()]

options = [{"scheduling_strategy": cluster.in_bundle(bundle)} for bundle in range(4)]
print("places", *ray.get([place.options(**one).remote() for one in options]))
"""


@pytest.mark.slow
def test_consecutive_bundles_are_below_one_switch():
    """Four nodes of a real Ray, which puts bundles on them in any order."""
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert "places 0 3 1 2" in done.stdout, done.stdout + done.stderr
