"""The cluster section to a running cluster; knows Ray's session, no workers."""

from __future__ import annotations

from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.distributed import ray_session
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster


def make_cluster(config: ClusterConfig) -> RayVirtualCluster:
    """Places for the workers of a run: on the Ray of RAY_ADDRESS, or on one of ours.

    Nothing is reserved before the first worker starts.
    """
    return RayVirtualCluster(
        [config.workers_per_node] * config.num_nodes,
        use_gpus=config.use_gpus,
        num_gpus_per_node=config.gpus_per_node or None,
        num_cpus_per_worker=config.num_cpus_per_worker,
    )


def release_cluster(cluster: RayVirtualCluster) -> None:
    """End the workers, and Ray too where this process started it."""
    cluster.shutdown()
    ray_session.disconnect()
