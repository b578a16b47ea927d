"""Which machines train and which generate: the cluster section, divided.

Arithmetic only; `infra.resources` reserves what is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_rl.config.backends import generates_apart
from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.utils.exceptions import ConfigurationError

_RESOURCES = "policy.generation.colocated.resources"


@dataclass(frozen=True)
class ClusterLayout:
    """Worker places per node: of training, and of generation where it has its own.

    Example:
        >>> ClusterLayout(training=[8, 8], generation=[8]).training_size
        16
    """

    training: list[int]
    """Places of each node that trains."""
    generation: list[int]
    """Places of each node that generates apart from training; empty: on the same."""

    @property
    def training_size(self) -> int:
        """Worker processes that train."""
        return sum(self.training)


def cluster_layout(
    cluster: ClusterConfig, policy: PolicyConfig | None
) -> ClusterLayout:
    """Divide the cluster between training and generation.

    Args:
        cluster: the machines.
        policy: the policy section; None where nothing is sampled.

    Raises:
        ConfigurationError: generation leaves nothing to train on, or its engines do not
            fit its machines.
    """
    nodes, per_node = cluster.num_nodes, cluster.workers_per_node
    everything = [per_node] * nodes
    if policy is None or not generates_apart(policy):
        return ClusterLayout(everything, [])
    if policy.generation.colocated.enabled:
        layout = ClusterLayout(everything, [])
    else:
        layout = _divided(cluster, policy)
    _check_engines(layout.generation or everything, policy)
    return layout


def _divided(cluster: ClusterConfig, policy: PolicyConfig) -> ClusterLayout:
    resources = policy.generation.colocated.resources
    nodes, per_node = cluster.num_nodes, cluster.workers_per_node
    kind = "gpus_per_node" if cluster.use_gpus else "cpu_workers_per_node"
    other = "cpu_workers_per_node" if cluster.use_gpus else "gpus_per_node"
    if getattr(resources, other) is not None:
        raise ConfigurationError(
            f"{_RESOURCES}.{other} is set, but the cluster has "
            f"{'GPUs' if cluster.use_gpus else 'no GPUs'}: set {kind} instead."
        )
    own = getattr(resources, kind)
    if resources.num_nodes is None:
        if own is None:
            raise ConfigurationError(
                "policy.generation.colocated.enabled=false gives generation machines "
                f"of its own: say how many of the cluster's in {_RESOURCES}.num_nodes "
                f"(whole nodes) or {kind} (of each of the {nodes} nodes)."
            )
        if own >= per_node:
            raise ConfigurationError(
                f"{_RESOURCES}.{kind}={own} of cluster.{kind}={per_node} leaves no "
                f"place to train on: lower it to at most {per_node - 1}, or set "
                "num_nodes."
            )
        return ClusterLayout([per_node - own] * nodes, [own] * nodes)
    if own not in (None, per_node):
        raise ConfigurationError(
            f"{_RESOURCES}.num_nodes={resources.num_nodes} takes whole nodes of "
            f"{per_node} places, and {kind}={own} a part of them: give one of the two."
        )
    if resources.num_nodes >= nodes:
        raise ConfigurationError(
            f"{_RESOURCES}.num_nodes={resources.num_nodes} of "
            f"cluster.num_nodes={nodes} leaves no node to train on: lower it, or raise "
            "cluster.num_nodes."
        )
    rest = nodes - resources.num_nodes
    return ClusterLayout([per_node] * rest, [per_node] * resources.num_nodes)


def _check_engines(places: list[int], policy: PolicyConfig) -> None:
    engine = policy.generation.vllm_cfg
    size = engine.tensor_parallel_size * engine.pipeline_parallel_size
    for count in places:
        if count % size:
            raise ConfigurationError(
                "policy.generation.vllm_cfg: tensor_parallel_size="
                f"{engine.tensor_parallel_size} x pipeline_parallel_size="
                f"{engine.pipeline_parallel_size} = {size} processes of an engine do "
                f"not divide the {count} places of a node that generates. An engine "
                "stays on one node: choose sizes that divide its places."
            )
