"""The cluster, divided between training and generation."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.algorithms.sft.config import SFTMasterConfig
from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.layout import cluster_layout
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.utils.exceptions import ConfigurationError


def policy(resources: dict[str, int] | None = None, **engine: int) -> PolicyConfig:
    generation: dict[str, Any] = {"backend": "vllm", "vllm_cfg": engine}
    if resources is not None:
        generation["colocated"] = {"enabled": False, "resources": resources}
    return PolicyConfig.from_mapping({"model_name": "m", "generation": generation})


GPUS = ClusterConfig(num_nodes=4, gpus_per_node=8)
CPUS = ClusterConfig(gpus_per_node=0, cpu_workers_per_node=3)


@pytest.mark.parametrize(
    ("cluster", "resources", "training", "generation"),
    [
        (GPUS, None, [8] * 4, []),
        (GPUS, {"num_nodes": 1}, [8] * 3, [8]),
        (GPUS, {"num_nodes": 1, "gpus_per_node": 8}, [8] * 3, [8]),
        (GPUS, {"gpus_per_node": 2}, [6] * 4, [2] * 4),
        (CPUS, {"cpu_workers_per_node": 1}, [2], [1]),
    ],
)
def test_division(cluster, resources, training, generation):
    layout = cluster_layout(cluster, policy(resources))
    assert (layout.training, layout.generation) == (training, generation)
    assert layout.training_size == sum(training)


def test_a_generator_with_the_trainers_weights_takes_no_places():
    own = PolicyConfig.from_mapping({"model_name": "m"})
    assert cluster_layout(GPUS, own).generation == []
    assert cluster_layout(GPUS, None).training == [8] * 4


@pytest.mark.parametrize(
    ("cluster", "resources", "message"),
    [
        (GPUS, {}, "say how many of the cluster's"),
        (GPUS, {"num_nodes": 4}, "leaves no node to train on"),
        (GPUS, {"gpus_per_node": 8}, "at most 7"),
        (GPUS, {"num_nodes": 1, "gpus_per_node": 2}, "give one of the two"),
        (GPUS, {"cpu_workers_per_node": 1}, "set gpus_per_node instead"),
        (CPUS, {"gpus_per_node": 1}, "set cpu_workers_per_node instead"),
    ],
)
def test_what_does_not_divide(cluster, resources, message):
    with pytest.raises(ConfigurationError, match=message):
        cluster_layout(cluster, policy(resources))


@pytest.mark.parametrize(
    ("engine", "fits"),
    [
        ({"tensor_parallel_size": 4}, True),
        ({"tensor_parallel_size": 3}, False),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 4}, False),
    ],
)
def test_engines_stay_on_a_node(engine, fits):
    if fits:
        assert cluster_layout(GPUS, policy(**engine)).training_size == 32
        return
    with pytest.raises(ConfigurationError, match="divide the 8 places of a node"):
        cluster_layout(GPUS, policy(**engine))


def test_training_is_laid_out_over_its_own_part():
    recipe = {
        "policy": {
            "model_name": "m",
            "train_global_batch_size": 4,
            "train_micro_batch_size": 1,
            "generation": {
                "backend": "vllm",
                "colocated": {"enabled": False, "resources": {"num_nodes": 1}},
            },
        },
        "cluster": {"num_nodes": 2, "gpus_per_node": 2},
        "grpo": {"num_prompts_per_step": 2, "num_generations_per_prompt": 2},
    }
    assert GRPOMasterConfig.from_mapping(recipe).parallel_dims.dp == 2
    del recipe["grpo"]
    assert SFTMasterConfig.from_mapping(recipe).parallel_dims.dp == 4


def test_places_of_its_own_need_weights_of_its_own():
    recipe = {"model_name": "m", "generation": {"colocated": {"enabled": False}}}
    with pytest.raises(ConfigurationError, match="set it to 'vllm'"):
        PolicyConfig.from_mapping(recipe)
