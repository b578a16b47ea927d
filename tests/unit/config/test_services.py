"""The checkpointing and logger sections."""

import pytest

from nemo_rl.config.services import CheckpointingConfig, LoggerConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_must_save_by_in_seconds() -> None:
    config = CheckpointingConfig(checkpoint_must_save_by="01:02:03:04")
    assert config.must_save_by_s == 86400 + 2 * 3600 + 3 * 60 + 4
    assert CheckpointingConfig().must_save_by_s is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric_name": "accuracy"}, "say which metric: 'val:accuracy' or 'train:acc"),
        ({"checkpoint_must_save_by": "4h"}, "='4h' is no duration. Expected 'DD:HH:MM"),
        ({"keep_top_k": 0}, "keep_top_k=0: expected greater than or equal to 1"),
    ],
)
def test_values_that_cannot_be(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CheckpointingConfig(**values)


def test_logger_sections_keep_their_defaults() -> None:
    logger = LoggerConfig.from_mapping({"wandb": {"name": "run"}})
    assert (logger.wandb.project, logger.wandb.name) == ("nemo-rl", "run")
    with pytest.raises(
        ConfigurationError, match="console='loud' is not one of auto, ri"
    ):
        logger.console = "loud"
