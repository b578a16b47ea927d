"""GRPO that samples ahead, with real models: Megatron trains, another engine samples.

The engine is a Hugging Face model behind the same stream of requests that vLLM has;
every rank is forked, so no test pays for a start. What depends on timing alone is
tested on a table in tests/unit/experience/test_ahead.py.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.algorithms import GRPO
from nemo_rl.distributed.local import LocalCluster
from nemo_rl.models.policy import Policy
from nemo_rl.models.policy.paired import PairedPolicy
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes.tables import TableGenerator
from tests.functional import tiny_task
from tests.functional.ranks import run_ranks

PROMPTS, RESPONSES = 16, 8


class ModelGenerator(TableGenerator):
    """The stream of ``TableGenerator`` over a transformer of its own weights."""

    def __init__(self, folder: Path, *, delay_s: float = 0.0) -> None:
        import transformers

        super().__init__(5, slots=256, delay_s=delay_s)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def update_weights(self, weights: Any, version: int = 1) -> None:
        with self._lock:
            self.model.load_state_dict(weights, strict=False)
            self.model.tie_weights()
            self.version = version

    @torch.no_grad()
    def scores_of(self, texts: list[list[int]]) -> torch.Tensor:
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        last = torch.tensor([len(text) - 1 for text in texts])
        logits = self.model(ids).logits[torch.arange(len(texts)), last]
        return torch.log_softmax(logits.double(), -1)


def _tuned(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=110))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return run_ranks(_tuned, 1, tmp_path_factory.mktemp("model") / "model")[0]


def recipe(model: str, folder: Path, steps: int, **ahead: Any) -> dict[str, Any]:
    values = tiny_task.recipe(Path(model), workers=1)
    values["policy"] |= {
        "train_micro_batch_size": 64,
        "train_global_batch_size": PROMPTS * RESPONSES,
        "optimizer": {"kwargs": {"lr": 3.0e-4, "weight_decay": 0.0}},
    }
    values["grpo"] |= {
        "num_prompts_per_step": PROMPTS,
        "num_generations_per_prompt": RESPONSES,
        "max_num_steps": steps,
        "val_period": 0,
        "val_at_start": False,
        "async_grpo": ahead,
    }
    values["loss_fn"] |= {
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_ratio": 2.0,
    }
    values["checkpointing"] |= {
        "checkpoint_dir": str(folder / "saved"),
        "export_hf": False,
    }
    values["logger"] |= {
        "log_dir": str(folder / "logs"),
        "console": "off",
        "tensorboard_enabled": False,
    }
    return values


APART = {
    "backend": "vllm",
    "colocated": {"enabled": False, "resources": {"cpu_workers_per_node": 1}},
}
"""What a generator of one's own stands in for."""


def _grpo(_, model, folder, steps, delay_s, ahead):
    """Metrics of each step, the weights at the end, and the responses in order."""
    random.seed(delay_s)
    slots = ahead.pop("slots", 256)
    values = recipe(model, folder, steps, **ahead)
    generator = ModelGenerator(Path(model), delay_s=delay_s)
    generator.slots = slots
    policy = PairedPolicy(
        Policy(LocalCluster(), values["policy"], keep_reference=False), generator
    )
    values["policy"]["generation"] |= APART
    values["cluster"]["cpu_workers_per_node"] = 2
    values["logger"]["save_rollouts"] = True
    result = GRPO(policy, values).train()
    return result.history, policy.policy.export_weights(), generator.submitted


def run(model, folder, steps, *, delay_s=0.0, **ahead):
    return run_ranks(_grpo, 1, model, folder, steps, delay_s, ahead)[0]


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)


def test_async_without_staleness_is_the_synchronous_run_to_the_bit(
    model, tmp_path
) -> None:
    history, weights, asked = run(model, tmp_path / "sync", 3, enabled=False)
    other, same_weights, same_asked = run(
        model, tmp_path / "zero", 3, enabled=True, max_staleness_steps=0
    )
    assert same(weights, same_weights) and asked == same_asked
    assert [row["loss"] for row in history] == [row["loss"] for row in other]


def test_async_deterministic_is_the_same_twice(model, tmp_path) -> None:
    options = {"enabled": True, "deterministic": True, "max_staleness_steps": 2}
    history, weights, _ = run(model, tmp_path / "a", 6, delay_s=0.004, **options)
    _, again, _ = run(model, tmp_path / "b", 6, **options)
    assert same(weights, again)
    assert [row["staleness_mean"] for row in history] == [0, 1, 2, 2, 2, 2]


def test_async_learns_within_its_bound(model, tmp_path) -> None:
    history, _, _ = run(
        model,
        tmp_path,
        60,
        delay_s=0.002,
        enabled=True,
        max_staleness_steps=2,
        in_flight_weight_updates=True,
    )
    assert 0 < max(row["staleness_max"] for row in history) <= 2
    # The importance weights correct what the age of the responses has done.
    assert any(row["token_mult_prob_error"] > 1.01 for row in history)
    rewards = [row["reward"] for row in history]
    assert sum(rewards[-20:]) / 20 > sum(rewards[:5]) / 5 + 0.06, rewards


def test_async_goes_on_with_responses_of_earlier_weights(model, tmp_path) -> None:
    history, _, asked = run(
        model,
        tmp_path,
        8,
        enabled=True,
        max_staleness_steps=3,
        over_sampling=1.5,
        slots=16,
        in_flight_weight_updates=True,
    )
    assert sum(row["continued_responses"] for row in history) > 0
    assert max(row["staleness_max"] for row in history) <= 3
    assert any(request.begun_ids for request in asked)


def _shared(_, model, folder):
    values = recipe(model, folder, 2, enabled=True)
    policy = Policy(LocalCluster(), values["policy"], keep_reference=False)
    values["policy"]["generation"] |= APART
    values["cluster"]["cpu_workers_per_node"] = 2
    try:
        GRPO(policy, values).train()
    except ConfigurationError as error:
        return str(error)


def test_async_with_a_policy_that_shares_its_weights_is_refused(
    model, tmp_path
) -> None:
    (message,) = run_ranks(_shared, 1, model, tmp_path)
    assert "Policy generates with the workers that train" in message
