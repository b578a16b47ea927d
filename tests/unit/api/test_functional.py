"""Algorithm names, recipe files and the registry."""

from pathlib import Path

import pytest

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.algorithms.sft.config import SFTMasterConfig
from nemo_rl.api import functional
from nemo_rl.api.functional import (
    _ALGORITHM_REGISTRY,
    AlgorithmEntry,
    algorithm_of,
    build_config,
    config_class,
    create_trainer,
    load_recipe,
    to_config,
    trainer_class,
)
from nemo_rl.config.master import OpenMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


class MyTrainer:
    """A trainer that keeps what it is given."""

    config_class = OpenMasterConfig

    def __init__(self, config: object) -> None:
        self.config = config


@pytest.fixture
def myalgo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_ALGORITHM_REGISTRY, "myalgo", MyTrainer)


def test_config_classes() -> None:
    assert config_class("grpo") is GRPOMasterConfig
    assert config_class("sft") is SFTMasterConfig
    with pytest.raises(
        ConfigurationError, match="algorithm='gpro' is not one of distillation, dpo, ev"
    ):
        config_class("gpro")


@pytest.mark.parametrize(
    ("algorithm", "name"), [("sft", "SFT"), ("dpo", "DPO"), ("rm", "RM")]
)
def test_every_algorithm_has_its_trainer(algorithm: str, name: str) -> None:
    config = build_config("m", algorithm, gpus_per_node=1)
    assert type(create_trainer(config)).__name__ == f"{name}Trainer"


def test_registering_a_trainer_class(myalgo: None) -> None:
    mapping = {"policy": {"model_name": "m"}, "myalgo": {"x": 1}}
    trainer = create_trainer(mapping)
    assert isinstance(trainer, MyTrainer) and trainer.config is mapping
    assert trainer_class("myalgo") is MyTrainer
    assert build_config("m", "myalgo", x=1).algorithm_section.x == 1
    assert not functional.is_builtin("myalgo")


def test_registered_class_needs_a_config_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_ALGORITHM_REGISTRY, "bare", object)
    with pytest.raises(
        ConfigurationError, match="object, registered as 'bare', has no c"
    ):
        config_class("bare")


def test_create_trainer_takes_the_entrys_class(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = AlgorithmEntry(
        config="nemo_rl.algorithms.grpo.config:GRPOMasterConfig",
        trainer="builtins:dict",
    )
    monkeypatch.setitem(_ALGORITHM_REGISTRY, "grpo", entry)
    assert create_trainer({"grpo": {"seed": 1}}) == {"grpo": {"seed": 1}}


@pytest.mark.parametrize(
    ("mapping", "name"),
    [({"algorithm": "sft"}, "sft"), ({"dpo": {}}, "dpo"), ({"grpo": {}}, "grpo")],
)
def test_algorithm_of(mapping: dict, name: str) -> None:
    assert algorithm_of(mapping) == name


@pytest.mark.parametrize(
    ("mapping", "found"), [({}, "none"), ({"sft": {}, "dpo": {}}, "several: sft, dpo")]
)
def test_which_algorithm(mapping: dict, found: str) -> None:
    with pytest.raises(ConfigurationError, match=f"which algorithm.*found {found}"):
        algorithm_of(mapping)


def test_algorithm_of_a_config() -> None:
    config = build_config("m", gpus_per_node=1)
    assert algorithm_of(config) == "grpo"
    assert to_config(config, "grpo") is config


def test_load_recipe(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("grpo: {num_prompts_per_step: 8}\npolicy: {model_name: m}\n")
    config = load_recipe(file, ["policy.learning_rate=2e-5"])
    assert config.policy.optimizer.kwargs.lr == 2e-5
    assert config.policy.train_global_batch_size == 128
    assert config.recipe_dir == tmp_path


def test_load_recipe_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("grpo: {sed: 8}\npolicy: {model_name: m}\n")
    with pytest.raises(
        ConfigurationError, match="r.yaml: grpo.sed is not a field. Did"
    ):
        load_recipe(file)
