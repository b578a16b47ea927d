"""nemo_rl.train(): its arguments, and what reaches the trainer."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from nemo_rl.api import functional
from nemo_rl.api.functional import AlgorithmEntry
from nemo_rl.api.train import train
from nemo_rl.config.master import MasterConfig
from nemo_rl.utils.exceptions import ConfigurationError


class RecordingTrainer:
    """Obeys the trainer's interface and returns what `fit` was given."""

    needs_reward: ClassVar[bool] = True

    def __init__(self, config: MasterConfig) -> None:
        self.config = config

    @classmethod
    def from_pretrained(cls, model: str, **kwargs: Any) -> "RecordingTrainer":
        trainer = cls.__new__(cls)
        trainer.config = {"model": model, **kwargs}
        return trainer

    def fit(self, **arguments: Any) -> dict[str, Any]:
        return {"config": self.config, **arguments}


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    entry = AlgorithmEntry(
        config="nemo_rl.algorithms.grpo.config:GRPOMasterConfig", trainer="unused:x"
    )
    monkeypatch.setitem(functional._ALGORITHM_REGISTRY, "grpo", entry)
    real = functional.import_object
    monkeypatch.setattr(
        functional,
        "import_object",
        lambda path: RecordingTrainer if path == "unused:x" else real(path),
    )


def reward(prompt: str, response: str) -> float:
    return float("correct" in response)


def test_the_five_line_script() -> None:
    result: Any = train(model="m", dataset="arithmetic", reward_fn=reward)
    assert result["dataset"] == "arithmetic"
    assert result["reward_fn"] is reward
    assert result["callbacks"] is None and result["val_dataset"] is None
    config = result["config"]
    assert config.policy.model_name == "m"
    assert config.policy.precision == "float32"
    assert config.cluster.world_size == 1


def test_keywords_reach_their_places() -> None:
    callbacks = [object()]
    result: Any = train(
        Path("folder"),
        [{"prompt": "1+1"}],
        reward,
        max_steps=3,
        learning_rate=1e-5,
        batch_size=2,
        callbacks=callbacks,
        val_dataset="other",
    )
    assert result["config"].grpo.max_num_steps == 3
    assert result["config"].policy.model_name == "folder"
    assert result["callbacks"] is callbacks and result["val_dataset"] == "other"


def test_a_mixture_is_a_dataset() -> None:
    mixture = [{"dataset_name": "arithmetic"}]
    for arguments in ({"mixture": mixture}, {"data": {"mixture": mixture}}):
        result: Any = train("m", **arguments)
        assert result["config"].data.mixture[0].dataset_name == "arithmetic"


def test_reward_by_name_goes_into_the_recipe() -> None:
    result: Any = train("m", "d", "rewards:score", env={"kwargs": {"a": 1}})
    assert result["reward_fn"] is None
    assert result["config"].env.reward_fn == "rewards:score"
    assert result["config"].env.kwargs == {"a": 1}


def test_environments_and_rewards_by_task_are_passed_on() -> None:
    class Environment:
        def step(self, message_log_batch: Any, metadata: Any) -> None:
            return None

    for given in (Environment(), {"sums": reward}):
        result: Any = train("m", "d", given)
        assert result["reward_fn"] is given


def test_an_algorithm_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(functional._ALGORITHM_REGISTRY, "mine", RecordingTrainer)
    result: Any = train("m", "d", algorithm="mine", my_param=2)
    assert result["config"] == {"model": "m", "my_param": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model='': expected a folder or a model's name"),
        ({"model": 3}, "model=3: expected"),
        ({"dataset": None}, "dataset is missing: pass a name"),
        ({"reward_fn": 5}, "reward_fn=5 is not callable. Expected a function"),
        ({"dataset": [{}], "reward_fn": None}, "reward_fn is missing: these rows"),
        ({"algorithm": "grop"}, "algorithm='grop' is not one of .* mean grpo?"),
        ({"algorithm": "sft"}, "'sft' learns from given answers.*reward_fn out"),
        (
            {"max_step": 1},
            "max_step is not a keyword of 'grpo'. Did you mean max_steps",
        ),
        ({"learning_rate": -1}, "policy.learning_rate=-1: expected greater than or"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict, message: str) -> None:
    good = {"model": "m", "dataset": "d", "reward_fn": reward}
    with pytest.raises(ConfigurationError, match=message):
        train(**{**good, **arguments})


def test_dataset_may_stand_in_the_data_section() -> None:
    result: Any = train("m", data={"dataset_name": "arithmetic"})
    assert result["dataset"] is None
    assert result["config"].data.dataset_name == "arithmetic"
