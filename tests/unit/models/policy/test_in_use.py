"""A section in use reads like the section and names its key when it is written."""

import pytest

from nemo_rl.config.dtensor import DTensorConfig
from nemo_rl.models.policy.in_use import InUse
from nemo_rl.utils.exceptions import ConfigurationError


def test_reads_and_refuses_to_be_written() -> None:
    section = DTensorConfig(tensor_parallel_size=2)
    view = InUse(section, "policy.dtensor_cfg")
    assert view.tensor_parallel_size == 2
    view.tensor_parallel_size = 2
    with pytest.raises(ConfigurationError, match=r"^policy.dtensor_cfg.tensor_paral"):
        view.tensor_parallel_size = 4
    with pytest.raises(ConfigurationError, match="Did you mean tensor_parallel_size"):
        view.tensor_paralel_size = 4
    assert section.tensor_parallel_size == 2
