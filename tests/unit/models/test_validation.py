"""The checks on a real policy in this process, and on policies broken on purpose.

Layouts are in tests/functional/test_evals.py.
"""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models import validation
from nemo_rl.models.policy.lm_policy import Policy
from nemo_rl.models.validation import (
    LENGTH,
    check_decoding,
    check_length,
    compare_log_probabilities,
    random_prompts,
    test_generation_consistency,
    test_max_model_len_respected,
    validate_log_probability_consistency,
)
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.functional.engines import VOCAB, policy_config
from tests.functional.ranks import run_ranks


@contextmanager
def perturbed(policy):
    """Noise on every weight, as after a refit that went wrong."""
    weights = list(policy.workers.worker.training.model.parameters())
    saved = [weight.detach().clone() for weight in weights]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise, alpha=0.2)
        yield
        for weight, value in zip(weights, saved, strict=True):
            weight.copy_(value)


class Stale:
    """A generator with other weights, always or in every second call."""

    def __init__(self, policy, every: int = 1) -> None:
        self.policy, self.every, self.calls = policy, every, 0
        self.prepared = 0

    def prepare_for_generation(self) -> None:
        self.prepared += 1

    def finish_generation(self) -> None:
        self.prepared -= 1

    def generate(self, data, greedy=False):
        assert self.prepared == 1
        self.calls += 1
        if self.calls % self.every:
            return self.policy.generate(data, greedy)
        with perturbed(self.policy):
            return self.policy.generate(data, greedy)


def _life(rank, folder):
    from nemo_rl.distributed.local import LocalCluster

    changes = {
        "max_total_sequence_length": LENGTH,
        "generation": {"max_new_tokens": LENGTH, "ignore_eos": True},
    }
    config = policy_config(model_name=str(folder), **changes)
    policy = Policy(LocalCluster(), config, keep_reference=False)
    prompts = random_prompts(VOCAB)
    stale = Stale(policy)
    found = {
        "same": compare_log_probabilities(policy, policy, prompts),
        "valid": validate_log_probability_consistency(policy, policy, prompts),
        "stale": compare_log_probabilities(policy, stale, prompts),
        "invalid": validate_log_probability_consistency(policy, stale, prompts),
        "lenient": validate_log_probability_consistency(policy, stale, prompts, 1e9),
        "decoding": check_decoding(policy, VOCAB),
        "broken decoding": check_decoding(Stale(policy, every=2), VOCAB),
        "length": check_length(policy, VOCAB, LENGTH),
        "too long": check_length(policy, VOCAB, LENGTH - 4),
    }
    policy.shutdown()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = models.save(tmp_path_factory.mktemp("model") / "llama", layers=2)
    (results,) = run_ranks(_life, 1, folder)
    return results


def test_a_policy_agrees_with_itself(found) -> None:
    assert found["same"].ok and found["valid"]
    assert found["same"].error == pytest.approx(1.0, abs=1e-4)
    # 4 prompts of 6, 5, 4 and 3 tokens, each filled up to the limit.
    assert f"over {4 * LENGTH - 18} tokens" in found["same"].detail
    assert found["decoding"].ok and found["decoding"].error < 1.0001


def test_perturbed_weights_in_the_generator_are_caught(found) -> None:
    assert not found["stale"].ok and found["stale"].error > 1.05
    assert found["invalid"] is False and found["lenient"] is True


def test_a_decoder_that_differs_from_its_prefill_is_caught(found) -> None:
    assert not found["broken decoding"].ok


def test_the_length_limit(found) -> None:
    assert found["length"].ok and str([LENGTH] * 4) in found["length"].detail
    assert not found["too long"].ok
    assert f"limit {LENGTH - 4}" in found["too long"].detail


def test_what_is_no_number_fails() -> None:
    policy = OneWordPolicy([5])
    prompts = random_prompts(9)

    class Nan:
        def get_logprobs(self, data):
            scores = torch.full(data["input_ids"].shape, math.nan)
            return BatchedDataDict({"logprobs": scores})

    assert not validate_log_probability_consistency(Nan(), policy, prompts)


def test_a_response_that_hides_its_cut_is_caught() -> None:
    found = check_length(OneWordPolicy([5]), 9, 20)
    assert not found.ok and "does not say so" in found.detail


def test_pytest_leaves_the_librarys_tests_alone() -> None:
    named = [name for name in vars(validation) if name.startswith("test_")]
    assert len(named) == 2
    for function in (test_max_model_len_respected, test_generation_consistency):
        assert function.__test__ is False
