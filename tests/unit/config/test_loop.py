"""Settings of the loop, shared by every algorithm."""

import pytest

from nemo_rl.algorithms.dpo.config import DPOConfig
from nemo_rl.algorithms.grpo.config import GRPOConfig
from nemo_rl.algorithms.sft.config import SFTConfig
from nemo_rl.config.loop import LoopConfig, OpenLoopConfig
from nemo_rl.config.master import OpenMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


@pytest.mark.parametrize("section", [DPOConfig, GRPOConfig, SFTConfig])
def test_every_algorithm_has_them(section: type) -> None:
    assert issubclass(section, LoopConfig)


def test_open_section_takes_any_key_and_checks_the_loops() -> None:
    section = OpenLoopConfig.from_mapping({"my_param": 1, "max_num_steps": 2})
    assert section["my_param"] == 1 and "my_param" in section
    assert "my_param" in list(section)
    with pytest.raises(ConfigurationError, match="max_num_steps=0: expected greater"):
        OpenLoopConfig.from_mapping({"max_num_steps": 0})


def test_open_recipe_finds_its_section() -> None:
    base = {"policy": {"model_name": "m"}}
    one = OpenMasterConfig.from_mapping({**base, "mine": {"seed": 5}})
    assert one.algorithm_section.seed == 5
    assert OpenMasterConfig.from_mapping(base).algorithm_section.max_num_steps == 1000
    two = {**base, "mine": {"seed": 5}, "other": {"seed": 6}}
    named = OpenMasterConfig.from_mapping({**two, "algorithm": "other"})
    assert named.algorithm_section.seed == 6
    with pytest.raises(ConfigurationError, match="Set `algorithm` to one of mine, oth"):
        _ = OpenMasterConfig.from_mapping(two).algorithm_section
