"""A reward model's recipe."""

import pytest

from nemo_rl.algorithms.dpo.config import DPOMasterConfig
from nemo_rl.algorithms.rm.config import RMMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


def recipe(**policy):
    cluster = {"gpus_per_node": 0, "cpu_workers_per_node": 1}
    policy = {"model_name": "m", "train_micro_batch_size": 2, **policy}
    return {"policy": policy, "cluster": cluster}


def test_the_score_is_switched_on_and_the_batch_follows():
    config = RMMasterConfig.from_mapping({**recipe(), "rm": {"batch_size": 6}})
    assert config.policy.reward_model_cfg.enabled
    assert config.policy.train_global_batch_size == 6
    assert config.max_row_length == config.policy.max_total_sequence_length
    assert config.checkpointing.metric_name == "val:accuracy"


def test_a_reward_model_has_its_own_algorithm():
    with pytest.raises(ConfigurationError, match="enabled=false, but algorithm rm"):
        RMMasterConfig.from_mapping(recipe(reward_model_cfg={"enabled": False}))
    with pytest.raises(ConfigurationError, match="only algorithm 'rm' trains"):
        DPOMasterConfig.from_mapping(recipe(reward_model_cfg={"enabled": True}))
