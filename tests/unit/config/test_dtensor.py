"""The dtensor_cfg section: what it takes from recipes written elsewhere."""

import pytest

from nemo_rl.config.dtensor import DTensorConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_off_unless_asked_for_and_version_is_dropped() -> None:
    assert DTensorConfig().enabled is False
    config = DTensorConfig.from_mapping({"_v2": True, "cpu_offload": True})
    assert config.cpu_offload is True and "_v2" not in config.to_dict()


def test_an_adapter_that_is_off_is_no_adapter() -> None:
    assert DTensorConfig(lora_cfg={"enabled": False, "dim": 8}).lora_cfg
    with pytest.raises(ConfigurationError, match="lora_cfg=.* Train all weights"):
        DTensorConfig(lora_cfg={"dim": 8})


def test_misspelt_keys_are_found() -> None:
    with pytest.raises(ConfigurationError, match="Did you mean tensor_parallel_size"):
        DTensorConfig(tensor_paralel_size=2)
