"""GenerationPolicy: shard prompts over replicas, run the generation engines, gather."""

from __future__ import annotations

from typing import Any

import torch

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.config.parallel import ParallelDims
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import WorkerGroup
from nemo_rl.models.generation.prompts import checked_prompts
from nemo_rl.models.policy.training_policy import (
    pad_rows_to_multiple,
    shard_over_replicas,
)
from nemo_rl.utils.exceptions import TrainingError


class GenerationPolicy:
    """Samples with a group of workers.

    Args:
        workers: one ``PolicyWorker`` per rank.
        dims: their layout.
        config: the policy section.
        stop_token_ids: the tokenizer's end tokens; the configuration wins over them.
    """

    def __init__(
        self,
        workers: WorkerGroup,
        dims: ParallelDims,
        config: PolicyConfig,
        *,
        stop_token_ids: tuple[int, ...] = (),
    ) -> None:
        self.workers, self.dims = workers, dims
        generation = config.generation
        ids, strings = generation.stop_token_ids, generation.stop_strings
        if ids is None:
            ids = stop_token_ids
        if generation.ignore_eos:
            ids, strings = (), ()
        self._params = {
            "max_new_tokens": generation.max_new_tokens,
            "max_total_length": config.max_total_sequence_length,
            "top_p": generation.top_p,
            "top_k": generation.top_k,
            "stop_token_ids": tuple(ids),
            "stop_strings": tuple(strings or ()),
            "batch_size": config.generation_batch_size,
        }
        self._temperature = generation.temperature

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample one response per row.

        Args:
            data: ``input_ids`` [B, S] right-padded, ``input_lengths`` [B] (or
                ``attention_mask``), and ``sampling_seed`` [B]; without seeds a row's
                seed is its index. ``max_new_tokens`` [B], where it is there, bounds
                responses: all by the largest.
            greedy: take the likeliest token.

        Returns:
            ``output_ids``, ``generation_lengths``, ``unpadded_sequence_lengths``,
            ``logprobs``, ``truncated``: see ``GenerationBackend.generate``.

        Raises:
            ConfigurationError: a prompt leaves no room for a response.
            DataError: no prompt, or an empty one.
            TrainingError: a sampled token came back without a finite log-prob.
        """
        prompts = checked_prompts(data, self._params["max_total_length"])
        options: dict[str, Any] = dict(self._params)
        if (own := prompts.pop("max_new_tokens", None)) is not None:
            options["max_new_tokens"] = min(options["max_new_tokens"], int(own.max()))
        padded, rows = pad_rows_to_multiple(prompts, self.dims.dp)
        shards = shard_over_replicas(padded, self.dims)
        params = SamplingParams(
            **options, temperature=0.0 if greedy else self._temperature
        )
        results = self.workers.run_per_rank("generate", [(s, params) for s in shards])
        parts = [BatchedDataDict(results[r]) for r in self.dims.dp_leaders()]
        output = BatchedDataDict.from_batches(parts)
        if output.size != rows:
            output = output.slice(0, rows)
        if not bool(torch.isfinite(output["logprobs"]).all()):
            raise TrainingError(
                "the generator returned log-probs that are not finite; its weights or "
                "its sampling options are broken"
            )
        return output
