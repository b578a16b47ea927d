"""What every algorithm's recipe has in common."""

from pathlib import Path

import pytest

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.config.master import OpenMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_recipe_dir_is_kept_but_never_written(tmp_path: Path) -> None:
    config = GRPOMasterConfig(policy={"model_name": "m"})
    assert config.recipe_dir is None
    config.recipe_dir = str(tmp_path)
    assert config.recipe_dir == tmp_path
    assert "recipe_dir" not in config.to_dict()
    assert str(tmp_path) not in str(config.to_dict())
    assert config.merged({"grpo": {"seed": 1}}).recipe_dir == tmp_path


def test_resolved_recipe_is_a_recipe() -> None:
    config = GRPOMasterConfig(policy={"model_name": "m", "learning_rate": 1e-3})
    assert GRPOMasterConfig.from_mapping(config.to_dict()) == config


def test_null_sections_are_named() -> None:
    with pytest.raises(ConfigurationError, match="grpo=None: expected a valid dict"):
        GRPOMasterConfig.from_mapping({"policy": {"model_name": "m"}, "grpo": None})


def test_parallel_dims() -> None:
    config = GRPOMasterConfig(
        policy={
            "model_name": "m",
            "megatron_cfg": {
                "tensor_model_parallel_size": 2,
                "pipeline_model_parallel_size": 2,
            },
        }
    )
    dims = config.parallel_dims
    assert (dims.tp, dims.pp, dims.dp, dims.world_size) == (2, 2, 2, 8)


def test_an_algorithm_of_ones_own_has_a_folder_of_its_own() -> None:
    recipe = {"policy": {"model_name": "m"}, "myalgo": {}}
    folder = OpenMasterConfig.from_mapping(recipe).checkpointing.checkpoint_dir
    assert folder == "results/myalgo"
    given = {**recipe, "checkpointing": {"checkpoint_dir": "here"}}
    config = OpenMasterConfig.from_mapping(given)
    assert config.checkpointing.checkpoint_dir == "here"
