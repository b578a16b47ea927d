"""Engines of one's own train GRPO: by name in a recipe, or registered in a script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.algorithms import GRPO
from nemo_rl.config.backends import REGISTERED
from nemo_rl.distributed.local import LocalCluster
from nemo_rl.models.policy import Policy
from nemo_rl.utils.exceptions import ConfigurationError
from tests.functional import tiny_task
from tests.functional.driver import environment
from tests.functional.own_engines import OwnEngine
from tests.functional.ranks import run_ranks

OWN = "tests.functional.own_engines"


def _random(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=0))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return run_ranks(_random, 1, tmp_path_factory.mktemp("model") / "model")[0]


def recipe(model: str, folder: Path, **policy: Any) -> dict[str, Any]:
    return {
        "policy": {
            "model_name": model,
            "precision": "float32",
            "learning_rate": 1.0,
            "train_global_batch_size": 32,
            "train_micro_batch_size": 1,
            "max_total_sequence_length": 16,
            "generation": {"max_new_tokens": 4, **policy.pop("generation", {})},
            **policy,
        },
        "grpo": {
            "num_prompts_per_step": 4,
            "num_generations_per_prompt": 8,
            "max_num_steps": 6,
            "max_num_epochs": 10,
            "val_period": 0,
        },
        "loss_fn": {"reference_policy_kl_penalty": 0.0},
        "checkpointing": {
            "checkpoint_dir": str(folder / "saved"),
            "metric_name": None,
            "export_hf": False,
        },
        "logger": {
            "log_dir": str(folder / "logs"),
            "console": "off",
            "tensorboard_enabled": False,
        },
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
    }


ROWS = [{"prompt": f"{n:02d}>", "answer": "1"} for n in range(8)]
BY_NAME = {
    "training_backend": f"{OWN}:OwnEngine",
    "generation": {"backend": f"{OWN}:OwnGenerator"},
}


def letters(prompt: str, response: str) -> float:
    return float(sum(character.isalpha() for character in response))


def _grpo(_, config):
    policy = Policy(LocalCluster(), config, keep_reference=False)
    result = GRPO(policy, config).train(dataset=ROWS, reward_fn=letters)
    worker = policy.workers.worker
    same = torch.equal(worker.generation.table, worker.training.table)
    # Once at the start, and after each update.
    return [row["reward"] for row in result.history], same, worker.generation.updates


def test_engines_named_in_a_recipe_train_and_resume(model, tmp_path):
    config = recipe(model, tmp_path, **BY_NAME)
    ((rewards, same, updates),) = run_ranks(_grpo, 1, config)
    assert len(rewards) == 6 and updates == 7
    assert sum(rewards[-2:]) > sum(rewards[:2])
    assert same
    config["grpo"]["max_num_steps"] = 7
    ((rewards, same, updates),) = run_ranks(_grpo, 1, config)
    # At the start, after the checkpoint was read, after the update.
    assert len(rewards) == 1 and updates == 3 and same


def _asks_for(_, config, what):
    policy = Policy(LocalCluster(), config, keep_reference=False)
    batch = {"input_ids": torch.tensor([[1, 2]]), "input_lengths": torch.tensor([2])}
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    try:
        getattr(policy, what)(BatchedDataDict(batch))
    except ConfigurationError as error:
        return str(error)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "get_reference_logprobs",
            "OwnEngine defines no get_reference_logprobs, which",
        ),
        ("save_hf", "OwnEngine defines no save_hf, which checkpointing.export_hf"),
        ("generate", "name one in policy.generation.backend"),
    ],
)
def test_what_an_engine_lacks_is_named_when_it_is_asked_for(
    model, tmp_path, method, message
):
    config = recipe(model, tmp_path, training_backend=BY_NAME["training_backend"])
    assert message in run_ranks(_asks_for, 1, config, method)[0]


def test_a_class_that_is_not_there_starts_nothing(model, tmp_path):
    config = recipe(model, tmp_path, training_backend=f"{OWN}:OwnEngin")
    with pytest.raises(ConfigurationError, match="Did you mean OwnEngine"):
        Policy(LocalCluster(), config)
    assert OwnEngine not in REGISTERED["training"].values()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import nemo_rl
from nemo_rl.backends.generation.base import register_generation_backend
from nemo_rl.backends.training.base import register_training_backend
from tests.functional.own_engines import OwnEngine, OwnGenerator

@register_training_backend("bigrams")
class Mine(OwnEngine):
    pass

@register_generation_backend("bigrams")
class MyGenerator(OwnGenerator):
    pass

rows = [{"prompt": f"{n:02d}>", "answer": "1"} for n in range(8)]
common = dict(
    model=sys.argv[1],
    dataset=rows,
    reward_fn=lambda prompt, response: float(response.count("1")),
    max_steps=2,
    batch_size=4,
    num_generations_per_prompt=4,
    max_sequence_length=16,
    max_new_tokens=4,
    checkpointing={"enabled": False},
)
own = nemo_rl.train(
    **common,
    training_backend="bigrams",
    generation={"backend": "bigrams"},
    loss_fn={"reference_policy_kl_penalty": 0.0},
    learning_rate=0.3,
)
assert own.steps == 2 and "grad_norm" not in own.metrics, own.metrics
dtensor = nemo_rl.train(
    **common,
    dtensor_cfg={"enabled": True, "tensor_parallel_size": 2},
    cpu_workers_per_node=2,
    learning_rate=1e-3,
)
assert dtensor.steps == 2 and dtensor.metrics["grad_norm"] > 0
# The sampler and the trainer agree on what was sampled.
print("RESULT", dtensor.metrics["sampling_importance_ratio"])
"""


def test_registered_engines_and_dtensor_over_ray(model, tmp_path):
    """Classes of the script itself reach the workers; then DTensor on two workers."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, str(root)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    ratio = float(done.stdout.rpartition("RESULT")[2])
    assert abs(ratio - 1) < 1e-3
