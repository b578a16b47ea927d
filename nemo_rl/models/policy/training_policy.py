"""TrainingPolicy: shard a batch over replicas, run the training engines, gather.

The driver's view: a batch of B rows in, metrics or [B, S] tensors out. Each rank of a
data-parallel replica gets the same shard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nemo_rl.backends.training.base import LossFunction, rows_per_sample
from nemo_rl.config.parallel import ParallelDims
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import WorkerGroup
from nemo_rl.utils.exceptions import DataError, TrainingError

_FILES_TIMEOUT_S = 3600.0
"""A file system that answers nothing for this long ends the run with a message."""


def shard_over_replicas(
    batch: BatchedDataDict, dims: ParallelDims
) -> list[dict[str, Any]]:
    """Tensors of a batch, one shard per rank; ranks of a replica share theirs.

    Args:
        batch: B rows, B a multiple of the data-parallel size.
        dims: the layout.
    """
    tensors = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor)}
    shards = BatchedDataDict(tensors).shard_by_batch_size(dims.dp)
    per_replica = [dict(shard) for shard in shards]
    return [per_replica[dims.coordinates(rank).dp] for rank in range(dims.world_size)]


class TrainingPolicy:
    """Trains and scores with a group of workers.

    Args:
        workers: one ``PolicyWorker`` per rank.
        dims: their layout.
        config: the policy section.

    Attributes:
        one_update: make one update of every batch, whatever its size.
    """

    def __init__(
        self, workers: WorkerGroup, dims: ParallelDims, config: PolicyConfig
    ) -> None:
        self.workers, self.dims, self.config = workers, dims, config
        self.one_update = False

    def train(self, data: BatchedDataDict, loss_fn: LossFunction) -> dict[str, Any]:
        """One update per ``train_global_batch_size`` rows, in order.

        Args:
            data: train batch; B a multiple of the global batch size.
            loss_fn: travels to the workers.

        Returns:
            Means over the updates of the loss, the loss's metrics, grad_norm and
            learning_rate; ``num_updates``; ``global_valid_tokens`` (sum). An extreme
            (``_min``, ``_max``) over no valid token at all is left out.

        Raises:
            DataError: the batch is no multiple of an update's rows.
            TrainingError: the loss or the gradient is not finite.
        """
        size = self.config.train_global_batch_size * rows_per_sample(loss_fn)
        if self.one_update:
            size = data.size
        if data.size % size or size % self.dims.dp:
            raise DataError(
                f"a batch of {data.size} rows does not split into updates of {size} "
                f"rows over {self.dims.dp} copies of the model: change "
                "policy.train_global_batch_size or the number of rows."
            )
        updates = [
            self._update(data.slice(start, start + size), loss_fn)
            for start in range(0, data.size, size)
        ]
        names = dict.fromkeys(name for update in updates for name in update)
        metrics = {
            name: _combine(name, [update[name] for update in updates if name in update])
            for name in names
        }
        metrics["num_updates"] = len(updates)
        return metrics

    def _update(
        self, batch: BatchedDataDict, loss_fn: LossFunction
    ) -> dict[str, float]:
        mask = batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]
        counts = {
            "global_valid_tokens": mask.sum(),
            "global_valid_seqs": batch["sample_mask"].sum(),
        }
        shards = shard_over_replicas(batch, self.dims)
        results = self.workers.run_per_rank(
            "train_step", [({**shard, **counts}, loss_fn) for shard in shards]
        )
        leaders = [results[rank] for rank in self.dims.dp_leaders()]
        micro = [m for leader in leaders for m in leader["micro_metrics"]]
        metrics = {name: _share_sum(name, micro) for name in micro[0]}
        for name in [n for n in metrics if _extreme_of(n) and math.isinf(metrics[n])]:
            del metrics[name]
        for name in ("grad_norm", "learning_rate"):
            if name in results[0]:  # an engine of one's own may not report it
                metrics[name] = results[0][name]
        metrics["train_cpu_s"] = sum(result["cpu_s"] for result in results)
        peak = max(result["peak_memory_bytes"] for result in results)
        metrics["peak_memory_gib_max"] = peak / 2**30
        metrics["global_valid_tokens"] = float(counts["global_valid_tokens"])
        _check_finite(metrics)
        return metrics

    def get_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``logprobs`` [B, S] of the current weights."""
        return BatchedDataDict({"logprobs": self._score("get_logprobs", data)})

    def get_reference_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``reference_policy_logprobs`` [B, S] of the initial weights."""
        values = self._score("get_reference_logprobs", data)
        return BatchedDataDict({"reference_policy_logprobs": values})

    def get_scores(self, data: BatchedDataDict) -> BatchedDataDict:
        """``scores`` [B] of a reward model."""
        return BatchedDataDict({"scores": self._score("get_scores", data)})

    def _score(self, method: str, data: BatchedDataDict) -> torch.Tensor:
        padded, rows = pad_rows_to_multiple(scorable(data), self.dims.dp)
        shards = shard_over_replicas(padded, self.dims)
        results = self.workers.run_per_rank(method, [(s,) for s in shards])
        return torch.cat([results[r] for r in self.dims.dp_leaders()])[:rows]

    def export_weights(self) -> dict[str, torch.Tensor]:
        """All weights as full tensors on the CPU, under their Hugging Face names."""
        first = {self.dims.rank_of(pp=stage) for stage in range(self.dims.pp)}
        keep = [(rank in first,) for rank in range(self.dims.world_size)]
        parts = self.workers.run_per_rank(
            "export_weights", keep, timeout_s=_FILES_TIMEOUT_S
        )
        return {name: w for part in parts if part for name, w in part.items()}

    def import_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Replace all weights on every rank; the optimizer's state stays."""
        self.workers.run_all("import_weights", weights, timeout_s=_FILES_TIMEOUT_S)

    def refit(self) -> None:
        """Give generators that have weights of their own the trained ones."""
        self.workers.run_all("refit", timeout_s=_FILES_TIMEOUT_S)

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """Write weights, optimizer and generators of every rank below ``path``."""
        self.workers.run_all(
            "save_checkpoint", str(path), with_optimizer, timeout_s=_FILES_TIMEOUT_S
        )

    def load_checkpoint(self, path: Path) -> None:
        """Restore every rank; the layout may differ from the one that saved."""
        self.workers.run_all("load_checkpoint", str(path), timeout_s=_FILES_TIMEOUT_S)

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""
        self.workers.run_all("save_hf", str(folder), timeout_s=_FILES_TIMEOUT_S)


def scorable(data: BatchedDataDict) -> BatchedDataDict:
    """The batch with ``input_ids`` and ``input_lengths``, whatever it was made for.

    Args:
        data: has them already; or is a ``GenerationDatumSpec`` with ``attention_mask``
            in place of the lengths, or a ``GenerationOutputSpec``.

    Raises:
        DataError: none of these.
    """
    if "output_ids" in data:
        ids, lengths = data["output_ids"], data["unpadded_sequence_lengths"]
    elif "input_ids" in data and "input_lengths" in data:
        return data
    elif "input_ids" in data and "attention_mask" in data:
        ids, lengths = data["input_ids"], data["attention_mask"].sum(-1)
    else:
        raise DataError(
            f"nothing to score in columns {', '.join(data)}: expected input_ids with "
            "input_lengths or attention_mask, or what a policy has generated."
        )
    return BatchedDataDict({"input_ids": ids, "input_lengths": lengths})


def pad_rows_to_multiple(
    data: BatchedDataDict, multiple: int
) -> tuple[BatchedDataDict, int]:
    """Repeat the last row until ``multiple`` divides the size; also the real size."""
    rows = data.size
    missing = -rows % multiple
    if not missing:
        return data, rows
    return data.select([*range(rows), *[rows - 1] * missing]), rows


def _extreme_of(name: str) -> Callable[[list[float]], float] | None:
    if name.endswith("_max"):
        return max
    return min if name.endswith("_min") else None


def _share_sum(name: str, micro: list[dict[str, float]]) -> float:
    values = [m[name] for m in micro]
    return (_extreme_of(name) or sum)(values)


def _combine(name: str, values: list[float]) -> float:
    if name in ("global_valid_tokens", "train_cpu_s"):
        return sum(values)
    extreme = _extreme_of(name)
    return extreme(values) if extreme else sum(values) / len(values)


def _check_finite(metrics: dict[str, float]) -> None:
    for name in [n for n in ("loss", "grad_norm") if n in metrics]:
        if not torch.isfinite(torch.tensor(metrics[name])):
            raise TrainingError(
                f"{name} is {metrics[name]}. The weights are no longer usable; resume "
                "from the last checkpoint with a lower policy.learning_rate, or look "
                "at the rewards and log-probs of this step's rollouts."
            )
