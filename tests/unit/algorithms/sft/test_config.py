"""The recipe of supervised fine-tuning."""

import pytest

from nemo_rl.algorithms.sft.config import SFTConfig, SFTMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_defaults_of_the_reference() -> None:
    section = SFTConfig()
    assert (section.batch_size, section.max_num_steps) == (32, 5000)
    assert section.max_num_epochs == 3


def test_common_sections_have_its_own_defaults() -> None:
    config = SFTMasterConfig.from_mapping(
        {"policy": {"model_name": "m"}, "checkpointing": {"keep_top_k": 1}}
    )
    assert config.checkpointing.checkpoint_dir == "results/sft"
    assert config.checkpointing.metric_name == "val:loss"
    assert not config.checkpointing.higher_is_better
    assert config.algorithm_section is config.sft


def test_global_batch_follows_batch_size() -> None:
    mapping = {"policy": {"model_name": "m"}, "sft": {"batch_size": 64}}
    config = SFTMasterConfig.from_mapping(mapping)
    assert config.policy.train_global_batch_size == 64


def test_batch_size_must_fill_every_copy() -> None:
    with pytest.raises(
        ConfigurationError, match="=12 is not a multiple of the 8 copies"
    ):
        SFTMasterConfig(policy={"model_name": "m"}, sft={"batch_size": 12})
