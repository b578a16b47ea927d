"""A policy of Megatron and engines of vLLM: one model, also after a death."""

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
from nemo_rl.algorithms.sft.loss import NLLLossFn
from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.layout import cluster_layout
from nemo_rl.distributed import ray_session
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
from nemo_rl.infra.resources import ResourceManager
from nemo_rl.models.policy import Policy
from tests.fakes import models
from tests.functional import tiny_task
from tests.functional.driver import merge
from tests.functional.engines import grpo_batch, policy_config
from tests.functional.guarded import tiny_folder

APART = {"enabled": False, "resources": {"cpu_workers_per_node": 1}}


@pytest.fixture(autouse=True)
def no_ray_is_left() -> Iterator[None]:
    """What is forked from here later must not find a connection that is not its own."""
    yield
    ray_session.disconnect()


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


@pytest.mark.slow
def test_grpo_learns_with_engines_on_the_places_that_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    model = tiny_task.make_model(tmp_path / "m", sft_steps=60, heads=2)
    changes: dict[str, Any] = {
        "policy": {
            "generation": {"backend": "vllm", "vllm_cfg": {"async_engine": True}},
            "train_micro_batch_size": 32,
        },
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


PROMPTS = torch.tensor([[5, 17, 60, 42, 99, 7], [8, 9, 3, 0, 0, 0]])
LENGTHS = torch.tensor([6, 3])


def follow(folder: str, logs: Path) -> list[dict[str, Any]]:
    """Three updates; what both sides say of the tokens that are sampled before each."""
    config = {
        "model_name": folder,
        "precision": "float32",
        "train_global_batch_size": 2,
        "train_micro_batch_size": 1,
        "max_total_sequence_length": 32,
        "learning_rate": 1e-2,
        "megatron_cfg": {"tensor_model_parallel_size": 2},
        "generation": {"backend": "vllm", "max_new_tokens": 8, "temperature": 0.8},
    }
    cluster = RayVirtualCluster([2], use_gpus=False)
    policy = Policy(cluster, config, keep_reference=False)
    policy.report_to(logs, config)
    prompts = BatchedDataDict({"input_ids": PROMPTS, "input_lengths": LENGTHS})
    found = []
    for _step in range(3):
        output = policy.generate(prompts)
        sampled = output["token_versions"] >= 0
        trained = policy.get_logprobs(output)["logprobs"]
        found.append(
            {
                "error": float((trained - output["logprobs"])[sampled].abs().max()),
                "versions": output["token_versions"][sampled].unique().tolist(),
                "logprobs": trained,
            }
        )
        batch = {
            "input_ids": output["output_ids"],
            "input_lengths": output["unpadded_sequence_lengths"],
            "token_mask": sampled.float(),
            "sample_mask": torch.ones(2),
        }
        policy.train(BatchedDataDict(batch), NLLLossFn())
        found[-1] |= policy.refit()
    policy.shutdown()
    cluster.shutdown()
    return found


@pytest.mark.slow
def test_vllm_follows_a_policy_that_learns(tmp_path: Path) -> None:
    """Tied weights, in two halves where they are trained, whole where they sample."""
    folder = tmp_path / "model"
    size = {"hidden": 128, "layers": 2, "heads": 4, "kv_heads": 2}
    models.save(folder, "qwen3", tied=True, **size)
    found = follow(str(folder), tmp_path / "logs")
    assert [step["versions"] for step in found] == [[0], [1], [2]]
    for step in found:
        assert step["error"] < 1e-4
        assert step["guard/digest_mismatches"] == step["guard/digest_uncovered"] == 0
        assert step["guard/canary_error_max"] < 1e-4
        assert step["refit_bytes"] == pytest.approx(_bytes(folder), rel=0.01)
    assert not (tmp_path / "logs" / "guard").exists()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
