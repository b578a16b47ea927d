"""RayVirtualCluster: nodes x worker places, reserved in Ray as one placement group.

One bundle per node holds the CPUs and GPUs of that node's workers, so consecutive
ranks share a node. Knows nothing about what the workers do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_rl.distributed import ray_session, topology
from nemo_rl.distributed.interfaces import WorkerOptions
from nemo_rl.distributed.worker_groups import RayWorkerGroup
from nemo_rl.utils.exceptions import ConfigurationError, ResourceError
from nemo_rl.utils.imports import require

DEFAULT_NAME = "nemo_rl"


class RayVirtualCluster:
    """Worker places on the nodes of a Ray cluster.

    Nothing is reserved before the first workers are started.

    Attributes:
        generation: places that generate, where they are not these; None: these do.

    Example:
        >>> cluster = RayVirtualCluster([8, 8])       # two nodes of eight GPUs
        >>> cluster = RayVirtualCluster(gpus_per_node=4)
        >>> cluster = RayVirtualCluster([2], use_gpus=False)
    """

    def __init__(
        self,
        bundle_ct_per_node_list: Sequence[int] | None = None,
        *,
        use_gpus: bool = True,
        num_gpus_per_node: int | None = None,
        gpus_per_node: int | None = None,
        num_cpus_per_worker: int = 1,
        name: str = DEFAULT_NAME,
        timeout_s: float = 120.0,
    ) -> None:
        """Say how many workers each node takes.

        Args:
            bundle_ct_per_node_list: Workers per node, one entry per node; a single
                node of ``gpus_per_node`` workers when None.
            use_gpus: Whether each worker owns a GPU.
            num_gpus_per_node: GPUs a node has; no entry of the list may exceed it.
            gpus_per_node: The same under a second name.
            num_cpus_per_worker: CPUs reserved for each worker.
            name: Name of the placement group.
            timeout_s: How long to wait for nodes that are still joining.

        Raises:
            ConfigurationError: The numbers contradict each other or are missing.
        """
        self._workers_per_node = _workers_per_node(
            bundle_ct_per_node_list, num_gpus_per_node, gpus_per_node, use_gpus
        )
        if num_cpus_per_worker < 1:
            raise ConfigurationError(
                f"num_cpus_per_worker={num_cpus_per_worker} must be at least 1."
            )
        self._use_gpus = use_gpus
        self._num_cpus_per_worker = num_cpus_per_worker
        self._name = name
        self._timeout_s = timeout_s
        self._placement_group: Any = None
        self._order: list[int] = []
        self._groups: list[RayWorkerGroup] = []
        self.generation: RayVirtualCluster | None = None

    @property
    def world_size(self) -> int:
        """Number of worker places over all nodes."""
        return sum(self._workers_per_node)

    @property
    def use_gpus(self) -> bool:
        """Whether each place owns a GPU."""
        return self._use_gpus

    @property
    def num_nodes(self) -> int:
        """Number of nodes asked for."""
        return len(self._workers_per_node)

    @property
    def num_cpus_per_worker(self) -> int:
        """CPUs reserved for each worker."""
        return self._num_cpus_per_worker

    @property
    def workers_per_node(self) -> list[int]:
        """Worker places of each node."""
        return list(self._workers_per_node)

    def places(self) -> list[int]:
        """Return the bundle index of each place: ``[0, 0, 1, 1]`` for two nodes."""
        return [
            bundle
            for bundle, workers in enumerate(self._workers_per_node)
            for _ in range(workers)
        ]

    def placement_group(self) -> Any:
        """Return the placement group, reserving it on the first call.

        Ray is started in this machine where it is neither running nor named by
        RAY_ADDRESS.

        Raises:
            ResourceError: The nodes do not have what is asked for in time.
        """
        if self._placement_group is None:
            self.connect()
            self._placement_group = self._reserve()
            self._order = self._by_topology(self._placement_group)
        return self._placement_group

    def in_bundle(self, bundle: int) -> Any:
        """Return Ray's scheduling strategy for a worker on one of the nodes.

        Consecutive bundles are near one another, as far as nodes say where they are.
        """
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = self.placement_group()
        return PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=self._order[bundle]
        )

    def start_workers(
        self,
        actor_class: type,
        *,
        num_workers: int | None = None,
        env: Mapping[str, str] | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
        options: WorkerOptions | None = None,
    ) -> RayWorkerGroup:
        """Start one actor per place; see ``interfaces.VirtualCluster``.

        Several groups may share the places: ``options`` says what each takes of them.
        """
        group = RayWorkerGroup(
            virtual_cluster=self,
            actor_class=actor_class,
            num_workers=num_workers,
            env=env,
            init_kwargs=init_kwargs,
            options=options,
        )
        self._groups.append(group)
        return group

    def shutdown(self) -> None:
        """End all workers and give the places back; Ray itself stays."""
        while self._groups:
            self._groups.pop().shutdown()
        group, self._placement_group = self._placement_group, None
        ray = require("ray")
        if group is not None and ray.is_initialized():
            ray.util.remove_placement_group(group)

    def connect(self) -> None:
        """Start or join Ray, with room for the places that generate as well."""
        if not require("ray").is_initialized():
            beside = self.generation.world_size if self.generation else 0
            places = self.world_size + beside
            ray_session.connect(
                num_cpus=places * self._num_cpus_per_worker,
                num_gpus=places if self._use_gpus else 0,
            )

    def _bundles(self) -> list[dict[str, float]]:
        bundles = []
        for workers in self._workers_per_node:
            bundle = {"CPU": float(workers * self._num_cpus_per_worker)}
            if self._use_gpus:
                bundle["GPU"] = float(workers)
            bundles.append(bundle)
        return bundles

    def _reserve(self) -> Any:
        from ray.util.placement_group import placement_group, remove_placement_group

        bundles = self._bundles()
        if ray_session.is_local() and not _could_fit(bundles):
            raise self._too_small(bundles, waited_s=0)
        # STRICT_SPREAD: a bundle stands for a node, two of them never share one.
        strategy = "STRICT_SPREAD" if len(bundles) > 1 else "STRICT_PACK"
        group = placement_group(bundles, strategy=strategy, name=self._name)
        start = time.monotonic()
        if not group.wait(timeout_seconds=self._timeout_s):
            remove_placement_group(group)
            raise self._too_small(bundles, waited_s=time.monotonic() - start)
        return group

    def _by_topology(self, group: Any) -> list[int]:
        """Return Ray's index of each bundle, counted as `topology.order` does."""
        count = len(self._workers_per_node)
        if len(set(self._workers_per_node)) > 1:
            return list(range(count))  # One cannot stand for another.
        from ray.util.placement_group import placement_group_table

        where = placement_group_table(group)["bundles_to_node_id"]
        nodes = {node["NodeID"]: node["Labels"] for node in require("ray").nodes()}
        return topology.order([nodes[where[index]] for index in range(count)])

    def _too_small(
        self, bundles: list[dict[str, float]], *, waited_s: float
    ) -> ResourceError:
        ray = require("ray")
        asked = ", ".join(_amount(bundle) for bundle in bundles)
        free = ray.available_resources()
        nodes = [
            f"{node['NodeManagerHostname']}: {_amount(node['Resources'])}"
            for node in ray.nodes()
            if node["Alive"]
        ]
        return ResourceError(
            f"The run asks for {len(bundles)} node(s) with {asked}; Ray has "
            f"{len(nodes)} node(s): {'; '.join(nodes)}; free now: {_amount(free)} "
            f"(waited {waited_s:.0f} s). Lower cluster.num_nodes, "
            "cluster.gpus_per_node or cluster.num_cpus_per_worker, or check that "
            "every node has joined."
        )


def _workers_per_node(
    listed: Sequence[int] | None,
    num_gpus_per_node: int | None,
    gpus_per_node: int | None,
    use_gpus: bool,
) -> list[int]:
    if None not in (num_gpus_per_node, gpus_per_node) and (
        num_gpus_per_node != gpus_per_node
    ):
        raise ConfigurationError(
            f"num_gpus_per_node={num_gpus_per_node} and gpus_per_node={gpus_per_node} "
            "are two names of one number; give one."
        )
    per_node = gpus_per_node if num_gpus_per_node is None else num_gpus_per_node
    if listed is None:
        if not per_node:
            raise ConfigurationError(
                "RayVirtualCluster needs bundle_ct_per_node_list (workers per node, "
                "such as [8, 8]) or gpus_per_node."
            )
        listed = [per_node]
    workers = [int(count) for count in listed]
    if not workers or min(workers) < 1:
        raise ConfigurationError(
            f"bundle_ct_per_node_list={workers}: each node needs at least 1 worker."
        )
    if use_gpus and per_node and max(workers) > per_node:
        raise ConfigurationError(
            f"bundle_ct_per_node_list={workers} puts {max(workers)} workers on a node "
            f"with num_gpus_per_node={per_node} GPUs."
        )
    return workers


def _could_fit(bundles: list[dict[str, float]]) -> bool:
    """Whether the alive nodes' total resources hold one bundle each."""
    free = [node["Resources"] for node in require("ray").nodes() if node["Alive"]]
    for bundle in sorted(bundles, key=lambda b: tuple(b.values()), reverse=True):
        fitting = [
            node
            for node in free
            if all(node.get(kind, 0) >= number for kind, number in bundle.items())
        ]
        if not fitting:
            return False
        free.remove(fitting[0])
    return True


def _amount(resources: Mapping[str, float]) -> str:
    return " ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
