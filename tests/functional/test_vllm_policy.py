"""A policy trained by Megatron beside engines of vLLM: the same weights, also after a
death."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nemo_rl
from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.layout import cluster_layout
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.infra.resources import ResourceManager
from nemo_rl.models.policy import Policy
from tests.functional import tiny_task
from tests.functional.driver import merge
from tests.functional.engines import grpo_batch, policy_config
from tests.functional.guarded import tiny_folder

APART = {"enabled": False, "resources": {"cpu_workers_per_node": 1}}


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Policy]:
    """One place trains, one generates."""
    monkeypatch.chdir(tmp_path)
    config = policy_config(
        model_name=str(tiny_folder(tmp_path / "m", "qwen2")),
        max_total_sequence_length=256,
        train_global_batch_size=8,
        generation={
            "backend": "vllm",
            "max_new_tokens": 200,
            "temperature": 0.7,
            "ignore_eos": True,
            "colocated": APART,
        },
    )
    places = ClusterConfig(gpus_per_node=0, cpu_workers_per_node=2)
    resources = ResourceManager(places, cluster_layout(places, config))
    policy = Policy(resources.allocate(), config, keep_reference=False)
    yield policy
    policy.shutdown()
    resources.release()


def apart(policy: Policy, output: BatchedDataDict) -> float:
    """Largest difference of the generator's and the trainer's log-probs."""
    scored = policy.get_logprobs(
        BatchedDataDict(
            {
                "input_ids": output["output_ids"],
                "input_lengths": output["unpadded_sequence_lengths"],
            }
        )
    )["logprobs"]
    sampled = output["token_versions"] >= 0
    assert sampled.sum() == output["generation_lengths"].sum()
    return ((scored - output["logprobs"]) * sampled).abs().max().item()


def test_weights_follow_training_and_engines_that_die_come_back(policy: Policy):
    draw = torch.Generator().manual_seed(0)
    prompts = BatchedDataDict(
        {
            "input_ids": torch.randint(3, 131, (6, 8), generator=draw),
            "input_lengths": torch.full((6,), 8),
        }
    )
    loss = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.0))
    for version in range(3):
        output = policy.generate(prompts)
        assert apart(policy, output) < 1e-4
        assert output["token_versions"].unique().tolist() == [-1, version]
        if version < 2:
            policy.train(BatchedDataDict(grpo_batch()), loss)
            assert policy.refit()["refit_bytes"] > 1e6

    [replica] = policy.synced.engines.replicas
    victim = replica.place.pid
    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()
    again = policy.generate(prompts)
    assert (replica.restarts, replica.place.pid != victim) == (1, True)
    for column in ("output_ids", "token_versions", "truncated"):
        assert torch.equal(again[column], output[column])
    assert torch.allclose(again["logprobs"], output["logprobs"], atol=1e-5)

    # One that dies with nothing to do is noticed by the next transfer.
    os.kill(replica.place.pid, signal.SIGKILL)
    time.sleep(0.5)
    policy.refit()
    assert replica.restarts == 2
    assert torch.equal(policy.generate(prompts)["output_ids"], output["output_ids"])


def test_grpo_learns_with_engines_on_the_places_that_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = tiny_task.make_model(tmp_path / "m", sft_steps=60, heads=2)
    changes: dict[str, Any] = {
        "policy": {"generation": {"backend": "vllm"}, "train_micro_batch_size": 32},
        "grpo": {"max_num_steps": 3, "val_period": 0, "val_at_start": False},
        "checkpointing": {"enabled": False},
        "logger": {"console": "plain", "log_dir": str(tmp_path / "logs")},
    }
    recipe = merge(tiny_task.recipe(model, workers=1), changes)
    result = nemo_rl.train(model=str(model), algorithm="grpo", **recipe)
    assert len(result.history) == 3
    for step in result.history:
        assert step["token_mult_prob_error"] == pytest.approx(1.0, abs=1e-4)
        assert step["guard/digest_mismatches"] == 0
        assert 0 < step["reward"] < 1 and step["grad_norm"] > 0
