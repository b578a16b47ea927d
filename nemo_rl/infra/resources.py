"""ResourceManager: the cluster section to places for workers, and back.

Knows Ray's session; no workers and no models.
"""

from __future__ import annotations

from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.distributed import ray_session
from nemo_rl.distributed.interfaces import VirtualCluster
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster


class ResourceManager:
    """Gives a run its places, on the Ray of RAY_ADDRESS or on one of its own.

    Args:
        config: how many machines, what of each.

    Example:
        >>> resources = ResourceManager(config.cluster)  # doctest: +SKIP
        >>> policy = Policy(resources.allocate(), config)  # doctest: +SKIP
        >>> resources.release()  # doctest: +SKIP
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._cluster: VirtualCluster | None = None

    def allocate(self) -> VirtualCluster:
        """Return the places, the same in every call.

        Nothing is reserved before the first worker starts.
        """
        if self._cluster is None:
            config = self.config
            self._cluster = RayVirtualCluster(
                [config.workers_per_node] * config.num_nodes,
                use_gpus=config.use_gpus,
                num_gpus_per_node=config.gpus_per_node or None,
                num_cpus_per_worker=config.num_cpus_per_worker,
            )
        return self._cluster

    def release(self) -> None:
        """End the workers, and Ray too where this process started it."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.shutdown()
            ray_session.disconnect()
