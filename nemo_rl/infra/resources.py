"""ResourceManager: the cluster section to places for workers, and back.

Knows Ray's session; no workers and no models.
"""

from __future__ import annotations

from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.layout import ClusterLayout
from nemo_rl.distributed import ray_session
from nemo_rl.distributed.virtual_cluster import DEFAULT_NAME, RayVirtualCluster


class ResourceManager:
    """Gives a run its places, on the Ray of RAY_ADDRESS or on one of its own.

    Args:
        config: how many machines, what of each.
        layout: which places train and which generate; None: all do both.

    Example:
        >>> resources = ResourceManager(config.cluster)  # doctest: +SKIP
        >>> policy = Policy(resources.allocate(), config)  # doctest: +SKIP
        >>> resources.release()  # doctest: +SKIP
    """

    def __init__(
        self, config: ClusterConfig, layout: ClusterLayout | None = None
    ) -> None:
        self.config = config
        self.layout = layout
        self._cluster: RayVirtualCluster | None = None

    def allocate(self) -> RayVirtualCluster:
        """Return the places that train, the same in every call.

        Their attribute ``generation`` has those that generate, where these do not.

        Nothing is reserved before the first worker starts.
        """
        if self._cluster is None:
            config = self.config
            everything = [config.workers_per_node] * config.num_nodes
            layout = self.layout or ClusterLayout(everything, [])
            self._cluster = self._places(layout.training, DEFAULT_NAME)
            if layout.generation:
                self._cluster.generation = self._places(
                    layout.generation, "nemo_rl-generation"
                )
        return self._cluster

    def _places(self, per_node: list[int], name: str) -> RayVirtualCluster:
        config = self.config
        return RayVirtualCluster(
            per_node,
            use_gpus=config.use_gpus,
            num_gpus_per_node=config.gpus_per_node or None,
            num_cpus_per_worker=config.num_cpus_per_worker,
            name=name,
        )

    def release(self) -> None:
        """End the workers, and Ray too where this process started it."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            if cluster.generation is not None:
                cluster.generation.shutdown()
            cluster.shutdown()
            ray_session.disconnect()
