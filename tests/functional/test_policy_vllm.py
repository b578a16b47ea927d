"""A policy of two Megatron ranks beside engines of vLLM: weights follow training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes import models
from tests.functional.ranks import run_ranks

PROMPTS = torch.tensor([[5, 17, 60, 42, 99, 7], [8, 9, 3, 0, 0, 0]])
LENGTHS = torch.tensor([6, 3])


def _session(_: Any, folder: str, logs: Path) -> list[dict[str, Any]]:
    from nemo_rl.algorithms.sft.loss import NLLLossFn
    from nemo_rl.distributed import BatchedDataDict, RayVirtualCluster
    from nemo_rl.models.policy import Policy

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


@pytest.mark.timeout(280)
def test_vllm_follows_a_policy_that_learns(tmp_path: Path) -> None:
    """Tied weights, in two halves where they are trained, whole where they sample."""
    folder = tmp_path / "model"
    size = {"hidden": 128, "layers": 2, "heads": 4, "kv_heads": 2}
    models.save(folder, "qwen3", tied=True, **size)
    (found,) = run_ranks(_session, 1, str(folder), tmp_path / "logs", timeout_s=250)
    assert [step["versions"] for step in found] == [[0], [1], [2]]
    for step in found:
        assert step["error"] < 1e-4
        assert step["guard/digest_mismatches"] == step["guard/digest_uncovered"] == 0
        assert step["guard/canary_error_max"] < 1e-4
        assert step["refit_bytes"] == pytest.approx(_bytes(folder), rel=0.01)
    assert not (tmp_path / "logs" / "guard").exists()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
