"""Engines of one's own train GRPO: by name in a recipe, or registered in a script.

They are those of docs/backends.md, as they stand there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.algorithms import GRPO
from nemo_rl.distributed.local import LocalCluster
from nemo_rl.models.policy import Policy
from nemo_rl.utils.exceptions import ConfigurationError
from tests.functional import bigrams, tiny_task
from tests.functional.driver import environment
from tests.functional.ranks import run_ranks


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> Path:
    """The folder of ``bigrams.py``, importable here and in forked ranks."""
    folder = bigrams.write_module(tmp_path_factory.mktemp("own"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
        sys.modules.pop("bigrams", None)


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
    "training_backend": "bigrams:Bigrams",
    "generation": {"backend": "bigrams:BigramSampler"},
}


def letters(prompt: str, response: str) -> float:
    return float(sum(character.isalpha() for character in response))


def _grpo(_, config):
    policy = Policy(LocalCluster(), config, keep_reference=False)
    result = GRPO(policy, config).train(dataset=ROWS, reward_fn=letters)
    worker = policy.workers.worker
    same = torch.equal(worker.generation.table, worker.training.table)
    return [row["reward"] for row in result.history], same


def test_engines_named_in_a_recipe_train_and_resume(model, module, tmp_path):
    config = recipe(model, tmp_path, **BY_NAME)
    ((rewards, same),) = run_ranks(_grpo, 1, config)
    assert len(rewards) == 6 and same
    assert sum(rewards[-2:]) > sum(rewards[:2])
    config["grpo"]["max_num_steps"] = 7
    ((more, same),) = run_ranks(_grpo, 1, config)
    assert len(more) == 1 and same
    # The generator has the weights of the checkpoint before it samples.
    assert more[0] > rewards[0]


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
            "Bigrams defines no get_reference_logprobs, which",
        ),
        ("save_hf", "Bigrams defines no save_hf, which checkpointing.export_hf"),
        ("generate", "name one in policy.generation.backend"),
    ],
)
def test_what_an_engine_lacks_is_named_when_it_is_asked_for(
    model, module, tmp_path, method, message
):
    config = recipe(model, tmp_path, training_backend=BY_NAME["training_backend"])
    assert message in run_ranks(_asks_for, 1, config, method)[0]


def test_a_class_that_is_not_there_starts_nothing(model, module, tmp_path):
    config = recipe(model, tmp_path, training_backend="bigrams:Bigram")
    with pytest.raises(ConfigurationError, match="Did you mean Bigrams"):
        Policy(LocalCluster(), config)


SCRIPT = """
import sys
import nemo_rl
from bigrams import Bigrams, BigramSampler
from nemo_rl.backends import get_training_backend
from nemo_rl.backends import register_generation_backend, register_training_backend

@register_training_backend("mine")
class Mine(Bigrams):
    pass

@register_generation_backend("mine")
class MySampler(BigramSampler):
    pass

assert isinstance(get_training_backend("mine"), Mine)

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
    training_backend="mine",
    generation={"backend": "mine"},
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


@pytest.mark.slow
def test_registered_engines_and_dtensor_over_ray(model, module, tmp_path):
    """Classes of the script itself reach the workers; then DTensor on two workers."""
    variables = environment()
    variables["PYTHONPATH"] += f":{module}"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    ratio = float(done.stdout.rpartition("RESULT")[2])
    assert abs(ratio - 1) < 1e-3
