"""Policies and generators of one's own: alone, and a learner beside a generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from nemo_rl.algorithms import GRPO
from nemo_rl.distributed import BatchedDataDict
from nemo_rl.models import HuggingFacePolicy
from nemo_rl.models.generation import GenerationDatumSpec, HuggingFaceGeneration
from nemo_rl.models.generation.interfaces import GenerationInterface
from nemo_rl.models.interfaces import PolicyInterface
from nemo_rl.models.policy import PairedPolicy
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.functional import tiny_task
from tests.functional.ranks import run_ranks


def load_custom_model(path: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


class CustomPolicy(PolicyInterface):
    """A policy without reference log-probs: the least that can be made."""

    def __init__(self, model_path: str):
        self.model = load_custom_model(model_path)

    def generate(
        self,
        data: BatchedDataDict[GenerationDatumSpec],
        greedy: bool,
    ):
        input_ids = data["input_ids"]
        outputs = self.model.generate(
            input_ids,
            max_new_tokens=data.get("max_new_tokens", 100),
            do_sample=not greedy,
            temperature=data.get("temperature", 0.7),
        )
        return BatchedDataDict(
            {
                "output_ids": outputs,
                "generation_lengths": torch.tensor(
                    [len(o) - len(i) for o, i in zip(outputs, input_ids, strict=True)]
                ),
                "unpadded_sequence_lengths": torch.tensor([len(o) for o in outputs]),
            }
        )

    def get_logprobs(self, data):
        input_ids = data["input_ids"]
        with torch.no_grad():
            outputs = self.model(input_ids)
            logprobs = torch.log_softmax(outputs.logits, dim=-1)
        return BatchedDataDict({"logprobs": logprobs})

    def train(self, data, loss_fn):
        loss = loss_fn(self.model, data)
        return {"loss": loss.item()}


class CustomGeneration(GenerationInterface):
    """A generator that cannot take weights."""

    def __init__(self, model_name: str, **kwargs):
        self.model = load_custom_model(model_name)
        self.prepared = 0

    def generate(self, data, greedy: bool):
        return CustomPolicy.generate(self, data, greedy)

    def prepare_for_generation(self):
        self.prepared += 1

    def finish_generation(self):
        self.prepared -= 1


class Following(CustomGeneration):
    """The same, with the method that training needs."""

    def update_weights(self, weights):
        self.model.load_state_dict(weights, strict=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return str(models.save(tmp_path_factory.mktemp("model") / "m", "llama", layers=2))


def test_a_policy_of_ones_own_needs_no_more_than_it_uses(source):
    policy = CustomPolicy(source)
    data = BatchedDataDict({"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])})
    output = policy.generate(data, greedy=True)
    assert output["output_ids"].shape == (2, 103)
    assert output["generation_lengths"].tolist() == [100, 100]
    assert policy.get_logprobs(data)["logprobs"].shape == (2, 3, 131)
    loss = policy.train(
        data, lambda model, batch: model(batch["input_ids"]).logits.sum()
    )
    assert isinstance(loss["loss"], float)
    with pytest.raises(ConfigurationError, match="reference_policy_kl_penalty to 0"):
        policy.get_reference_logprobs(data)


def test_a_generator_that_cannot_follow_is_refused(source):
    generator = CustomGeneration(source)
    with pytest.raises(ConfigurationError, match="defines no update_weights: it can"):
        generator.update_weights({})
    with pytest.raises(ConfigurationError, match="sampling with its first weights"):
        PairedPolicy(OneWordPolicy([5]), generator)
    with pytest.raises(ConfigurationError, match="OneWordPolicy defines no export"):
        PairedPolicy(OneWordPolicy([5]), Following(source))


def test_log_probs_are_never_made_up(source):
    class Learner(OneWordPolicy):
        def export_weights(self):
            return {}

    generator = Following(source)
    paired = PairedPolicy(Learner([5]), generator)
    data = BatchedDataDict({"input_ids": torch.tensor([[5, 6]])})
    with pytest.raises(ConfigurationError, match="Following.* returned no logprobs"):
        paired.generate(data)
    assert generator.prepared == 0


def _pair(_, folder, logs):
    model = str(tiny_task.make_model(folder, sft_steps=0))
    common = {"torch_dtype": "float32", "max_total_sequence_length": 16}
    learner = HuggingFacePolicy(model, optimizer={"kwargs": {"lr": 1e-2}}, **common)
    generator = HuggingFaceGeneration(model, max_new_tokens=4, **common)
    policy = PairedPolicy(learner, generator)
    config = {
        "policy": {
            "model_name": model,
            "max_total_sequence_length": 16,
            "train_micro_batch_size": 1,
            "generation": {"max_new_tokens": 4},
        },
        "grpo": {
            "num_prompts_per_step": 2,
            "num_generations_per_prompt": 4,
            "max_num_steps": 3,
            "val_period": 0,
        },
        "checkpointing": {"enabled": False},
        "logger": {"log_dir": logs, "console": "off", "tensorboard_enabled": False},
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
    }
    rows = [{"prompt": f"{n:02d}>", "answer": "1"} for n in range(8)]
    result = GRPO(policy, config).train(
        dataset=rows,
        reward_fn=lambda prompt, response: float(sum(c.isalpha() for c in response)),
    )
    mine, theirs = learner.export_weights(), generator.policy.export_weights()
    same = all(torch.equal(mine[name], theirs[name]) for name in mine)
    ratios = [row["sampling_importance_ratio"] for row in result.history]
    return same, ratios


def test_a_separate_generator_follows_what_grpo_trains(tmp_path):
    ((same, ratios),) = run_ranks(_pair, 1, tmp_path / "model", str(tmp_path / "logs"))
    assert same
    # What the generator reports is what the learner computes, after every update.
    assert ratios == pytest.approx([1.0] * 3, abs=1e-4)
