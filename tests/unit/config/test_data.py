"""The data section."""

import pytest

from nemo_rl.config.data import DataConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_nested_sections_are_read() -> None:
    data = DataConfig.from_mapping(
        {
            "max_input_seq_length": 64,
            "default": {"prompt_file": "p.txt", "env_name": "math", "processor": "x"},
            "train": {"dataset_name": "a", "split": "train", "prompt_file": "q.txt"},
            "validation": {"dataset_name": "b"},
        }
    )
    assert (data.dataset_name, data.dataset_kwargs) == ("a", {"split": "train"})
    assert (data.val_dataset_name, data.val_dataset_kwargs) == ("b", {})
    assert (data.prompt_file, data.processor) == ("q.txt", "x")


def test_no_validation_section() -> None:
    data = DataConfig.from_mapping({"train": {"dataset_name": "a"}, "validation": None})
    assert data.val_dataset_name is None


def test_one_system_prompt() -> None:
    with pytest.raises(ConfigurationError, match="system_prompt or system_prompt_file"):
        DataConfig(system_prompt="a", system_prompt_file="b")


def test_a_mixture_and_what_is_held_out() -> None:
    data = DataConfig.from_mapping(
        {
            "mixture": [
                {"dataset_name": "a", "weight": 2},
                {"dataset_name": "a", "dataset_kwargs": {"split": "x"}, "weight": 1.5},
            ],
            "split_validation_size": 0.1,
        }
    )
    assert [source.weight for source in data.mixture] == [2.0, 1.5]
    nested = DataConfig.from_mapping(
        {"train": {"dataset_name": "a", "split_validation_size": 0.05}}
    )
    assert nested.split_validation_size == 0.05 and nested.dataset_kwargs == {}
