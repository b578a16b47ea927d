"""The policy.generation section."""

import pytest

from nemo_rl.config.generation import GenerationConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_vllm_keys_are_read_but_not_needed() -> None:
    config = GenerationConfig.from_mapping(
        {"vllm_cfg": {"tensor_parallel_size": 1, "enforce_eager": False}}
    )
    assert config.backend is None
    assert config.vllm_cfg.gpu_memory_utilization == 0.6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature=-1: expected greater than or equal to 0"),
        ({"top_p": 0}, "top_p=0: expected greater than 0"),
        ({"top_k": 0}, "top_k=0: expected greater than or equal to 1"),
        ({"backend": "vlm"}, "is not one of megatron, hf, vllm, and no"),
    ],
)
def test_sampling_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        GenerationConfig(**values)
