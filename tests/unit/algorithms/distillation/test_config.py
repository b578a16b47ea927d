"""A recipe of distillation."""

import pytest

from nemo_rl.algorithms.distillation.config import DistillationMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError

RECIPE = {
    "policy": {"model_name": "small", "train_micro_batch_size": 2},
    "teacher": {"model_name": "large"},
    "distillation": {"num_prompts_per_step": 4, "num_generations_per_prompt": 2},
    "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 2},
}


def read(**changes):
    return DistillationMasterConfig.from_mapping({**RECIPE, **changes})


def test_the_batch_follows_what_is_sampled():
    config = read()
    assert config.samples_per_step == 8
    assert config.policy.train_global_batch_size == 8
    assert config.algorithm_section.topk_logits_k == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"model_name": " "}}, "teacher.model_name.*is empty"),
        ({"teacher": {}}, "teacher.model_name"),
        ({"loss_fn": {"zero_outside_topk": True}}, "reverse divergence is infinite"),
        ({"loss_fn": {"kl_type": "js"}}, "loss_fn.kl_type"),
        (
            {"policy": {"model_name": "s", "train_global_batch_size": 3}},
            "does not divide the 8 samples .*distillation.num_prompts",
        ),
    ],
)
def test_what_cannot_be(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        read(**changes)
