"""Keywords into recipes."""

from pathlib import Path

import pytest

from nemo_rl.algorithms.dpo.config import DPOMasterConfig
from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.algorithms.sft.config import SFTMasterConfig
from nemo_rl.config.keywords import (
    KEYWORDS,
    build_config,
    build_mapping,
    count_gpus,
    machine_defaults,
)
from nemo_rl.config.master import OpenMasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def grpo(**kwargs: object) -> GRPOMasterConfig:
    return build_config(GRPOMasterConfig, "m", "grpo", **kwargs)


def test_documented_keywords() -> None:
    config = grpo(
        max_steps=7,
        max_epochs=3,
        learning_rate=1e-4,
        batch_size=4,
        num_generations_per_prompt=8,
        max_sequence_length=64,
        max_new_tokens=16,
        precision="bfloat16",
        normalize_rewards=False,
        seed=3,
        output_dir="out",
        temperature=0.5,
    )
    assert (config.grpo.max_num_steps, config.grpo.max_num_epochs) == (7, 3)
    assert config.policy.optimizer.kwargs.lr == 1e-4
    assert config.grpo.num_prompts_per_step == 4
    assert config.policy.train_global_batch_size == 32
    assert config.max_prompt_length == 48
    assert config.policy.precision == "bfloat16"
    assert config.grpo.normalize_rewards is False
    assert config.grpo.seed == 3
    assert config.checkpointing.checkpoint_dir == "out"
    assert config.policy.generation.temperature == 0.5
    assert config.algorithm == "grpo"


def test_keys_of_the_data_section() -> None:
    config = grpo(dataset_name="arithmetic", dataset_kwargs={"size": 5}, shuffle=False)
    assert (config.data.dataset_name, config.data.shuffle) == ("arithmetic", False)
    assert config.data.dataset_kwargs == {"size": 5}
    config = grpo(mixture=[{"dataset_name": "a", "weight": 1}])
    assert config.data.mixture[0].weight == 1


def test_sections_and_keywords_mix() -> None:
    config = grpo(grpo={"val_period": 0}, max_steps=2, data={"shuffle": False})
    assert (config.grpo.val_period, config.grpo.max_num_steps) == (0, 2)
    assert config.data.shuffle is False


def test_batch_size_of_other_algorithms() -> None:
    sft = build_config(SFTMasterConfig, "m", "sft", batch_size=8, max_steps=5)
    assert (sft.sft.batch_size, sft.policy.train_global_batch_size) == (8, 8)
    dpo = build_config(DPOMasterConfig, "m", "dpo", beta=0.5)
    assert dpo.dpo.beta == 0.5


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_every_keyword_is_a_key_of_a_grpo_recipe(keyword: str) -> None:
    value = {"precision": "float32", "output_dir": "x"}.get(keyword, 1)
    assert build_mapping(GRPOMasterConfig, "m", "grpo", **{keyword: value})


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("lerning_rate", "not a keyword of 'grpo'. Did you mean learning_rate?"),
        ("enabled", "could be any of .*checkpointing.enabled.*: pass its section as a"),
        ("zzz", "zzz is not a keyword of 'grpo'.$"),
    ],
)
def test_keywords_that_cannot_be(keyword: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        grpo(**{keyword: 1})


def test_an_algorithm_of_ones_own_takes_any_keyword() -> None:
    config = build_config(
        OpenMasterConfig, "m", "myalgo", my_param=2.0, max_steps=3, batch_size=5
    )
    section = config.algorithm_section
    assert (section.my_param, section.max_num_steps, section.batch_size) == (2.0, 3, 5)
    assert config.get("myalgo", {})["my_param"] == 2.0


def test_machine_without_gpus(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        config = grpo()
    assert "Training on CPUs: 1 worker(s), float32." in caplog.text
    assert config.cluster.world_size == 1 and not config.cluster.use_gpus
    assert config.policy.precision == "float32"


def test_a_chosen_cluster_is_kept() -> None:
    assert grpo(gpus_per_node=2).cluster.gpus_per_node == 2
    workers = grpo(cpu_workers_per_node=2)
    assert (workers.cluster.world_size, workers.policy.precision) == (2, "float32")
    assert machine_defaults({"num_nodes": 2}) == {}


def test_gpus_are_counted_by_their_device_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert count_gpus(tmp_path) == 1


def test_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_rl.config.keywords.count_gpus", lambda: 4)
    assert machine_defaults({}) == {"cluster": {"gpus_per_node": 4}}


def test_tensor_parallel_size_is_that_of_the_backend_that_is_on() -> None:
    assert grpo(tensor_parallel_size=1).policy.dtensor_cfg.tensor_parallel_size == 1
    for chosen in (
        {"dtensor_cfg": {"enabled": True}},
        {"policy": {"dtensor_cfg": {"enabled": True}}},
        {"training_backend": "dtensor"},
    ):
        config = grpo(tensor_parallel_size=2, cpu_workers_per_node=2, **chosen)
        assert config.policy.dtensor_cfg.tensor_parallel_size == 2
        assert config.policy.megatron_cfg.tensor_model_parallel_size == 1
        assert config.parallel_dims.tp == 2
