"""The DPO recipe."""

import pytest

from nemo_rl.algorithms.dpo.config import DPOConfig, DPOMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_defaults_of_the_reference() -> None:
    section = DPOConfig()
    assert (section.batch_size, section.max_num_steps, section.beta) == (32, 1000, 0.1)


def test_nemo_rls_name_of_beta() -> None:
    assert DPOConfig(reference_policy_kl_penalty=0.05).beta == 0.05


def test_common_sections_have_its_own_defaults() -> None:
    config = DPOMasterConfig(policy={"model_name": "m"})
    assert config.checkpointing.checkpoint_dir == "results/dpo"
    assert config.policy.train_global_batch_size == 32
    assert config.algorithm_section is config.dpo


def test_beta_is_positive() -> None:
    with pytest.raises(ConfigurationError, match="beta=0: expected greater than 0"):
        DPOConfig(beta=0)


def test_batch_size_must_fill_every_copy() -> None:
    with pytest.raises(
        ConfigurationError, match="=12 is not a multiple of the 8 copies"
    ):
        DPOMasterConfig(policy={"model_name": "m"}, dpo={"batch_size": 12})
