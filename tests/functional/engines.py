"""A set-up training engine of a tiny model on a rank, and batches to feed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nemo_rl.backends.factory import get_training_backend
from nemo_rl.backends.training.base import EngineConfig
from nemo_rl.config.backends import parallel_dims, training_backend
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.rank import RankInfo

VOCAB = 131


def policy_config(tp: int = 1, pp: int = 1, **changes: Any) -> PolicyConfig:
    """fp32, Adam with an eps large enough not to amplify rounding of gradients."""
    megatron = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        **changes.pop("megatron_cfg", {}),
    }
    return PolicyConfig.from_mapping(
        {
            "model_name": "tiny",
            "precision": "float32",
            "train_micro_batch_size": 2,
            "max_total_sequence_length": 64,
            "megatron_cfg": megatron,
            "optimizer": {"kwargs": {"lr": 1e-2, "eps": 1e-4, "weight_decay": 0.01}},
            **changes,
        }
    )


def dtensor_config(tp: int = 1, **changes: Any) -> PolicyConfig:
    """The same for the DTensor backend."""
    section = {
        "enabled": True,
        "tensor_parallel_size": tp,
        **changes.pop("dtensor_cfg", {}),
    }
    return policy_config(dtensor_cfg=section, **changes)


def engine(rank: RankInfo, folder: Path, config: PolicyConfig, **fields: Any) -> Any:
    """The engine of this rank, ready to train."""
    backend = get_training_backend(training_backend(config))
    backend.setup(EngineConfig(rank=rank, policy=config, model_folder=folder, **fields))
    return backend


def grpo_batch(rows: int = 8, columns: int = 17, seed: int = 5) -> dict[str, Any]:
    """A train batch of ragged rows, one of them left out by its sample mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (rows, columns), generator=generator)
    lengths = torch.randint(9, columns + 1, (rows,), generator=generator)
    positions = torch.arange(columns)[None]
    mask = ((positions >= 5) & (positions < lengths[:, None])).float()
    prev = torch.randn(rows, columns, generator=generator) * 0.2 - 4.8
    sample_mask = torch.ones(rows)
    sample_mask[3] = 0.0
    return {
        "input_ids": torch.where(positions < lengths[:, None], ids, 0),
        "input_lengths": lengths,
        "token_mask": mask,
        "sample_mask": sample_mask,
        "advantages": torch.randn(rows, 1, generator=generator) * mask,
        "prev_logprobs": prev * mask,
        "generation_logprobs": prev * mask,
        "reference_policy_logprobs": (prev - 0.1) * mask,
    }


def with_counts(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the global counts that a loss divides by."""
    mask = batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]
    return {
        **batch,
        "global_valid_tokens": mask.sum(),
        "global_valid_seqs": batch["sample_mask"].sum(),
    }


def shard(
    batch: dict[str, Any], rank: RankInfo, config: PolicyConfig
) -> dict[str, Any]:
    """This rank's data-parallel shard, global counts included."""
    dims = parallel_dims(config, rank.world_size)
    index, size = dims.coordinates(rank.rank).dp, len(batch["input_ids"]) // dims.dp
    counted = with_counts(batch)
    return {
        key: value if value.dim() == 0 else value[index * size : (index + 1) * size]
        for key, value in counted.items()
    }
