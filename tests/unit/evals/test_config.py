"""What an evaluation can be asked for, and what it refuses."""

from __future__ import annotations

import pytest

from nemo_rl.evals.config import EvalConfig, EvalMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_ks_are_one_and_all_unless_given() -> None:
    assert EvalConfig().ks == [1]
    assert EvalConfig(num_samples=8).ks == [1, 8]
    assert EvalConfig(num_samples=8, k=[4, 2, 4]).ks == [2, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"greedy": True, "num_samples": 2}, "greedy answers are all alike"),
        ({"num_samples": 2, "k": [3]}, r"k=\[3\] must name numbers from 1 to"),
        ({"k": []}, r"k=\[\] must name"),
        ({"answer_pattern": "("}, "is no regular expression"),
    ],
)
def test_what_cannot_be_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EvalConfig(**values)


@pytest.mark.parametrize("section", ["checkpointing", "logger"])
def test_sections_of_training_are_refused(section: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{section} is a section of training"):
        EvalMasterConfig.from_mapping({"policy": {"model_name": "m"}, section: {}})
    config = EvalMasterConfig.from_mapping({"policy": {"model_name": "m"}})
    assert config.algorithm_section is config.eval
