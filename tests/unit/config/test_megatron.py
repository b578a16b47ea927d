"""The policy.megatron_cfg section."""

import pytest

from nemo_rl.config.megatron import DDPConfig, MegatronConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_defaults_are_one_process_and_exact_sums() -> None:
    config = MegatronConfig()
    assert config.enabled is None and config.layer_spec == "auto"
    assert config.tensor_model_parallel_size == 1
    assert config.pipeline_model_parallel_size == 1
    assert config.use_distributed_optimizer
    assert DDPConfig().grad_reduce_in_fp32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"tensor_model_paralel_size": 2},
            "is not a field. Did you mean tensor_model_parallel_size?",
        ),
        ({"tensor_model_parallel_size": 0}, "=0: expected greater than or equal to 1"),
        ({"layer_spec": "apex"}, "layer_spec='apex' is not one of auto, te, torch"),
        ({"empty_unused_memory_level": 3}, "=3: expected less than or equal to 2"),
    ],
)
def test_values_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MegatronConfig(**values)


def test_assigning_sizes_validates() -> None:
    config = MegatronConfig()
    config.pipeline_model_parallel_size = 2
    with pytest.raises(ConfigurationError, match="pipeline_model_parallel_size=0"):
        config.pipeline_model_parallel_size = 0
    assert config.pipeline_model_parallel_size == 2
