"""A policy without a network: it knows a probability for one fixed answer."""

from __future__ import annotations

from typing import Any

import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.interfaces import PolicyInterface


class OneWordPolicy(PolicyInterface):
    """Answers every prompt with ``answer``; every second time with nothing.

    It obeys the shapes of ``data/interfaces.py`` and counts what it is asked.
    """

    def __init__(self, answer: list[int], eos: int = 2) -> None:
        self.answer, self.eos = answer, eos
        self.updates: list[BatchedDataDict] = []
        self.greedy: list[bool] = []
        self.ended = False

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        self.greedy.append(greedy)
        ids, lengths = data["input_ids"], data["input_lengths"]
        rows, width = len(ids), ids.shape[1] + len(self.answer) + 1
        output = torch.zeros(rows, width, dtype=torch.int64)
        logprobs = torch.zeros(rows, width)
        sizes = []
        for row in range(rows):
            start = int(lengths[row])
            said = [] if row % 2 and not greedy else self.answer
            tokens = [*ids[row, :start].tolist(), *said, self.eos]
            output[row, : len(tokens)] = torch.tensor(tokens)
            logprobs[row, start : len(tokens)] = -0.5
            sizes.append(len(tokens) - start)
        generated = torch.tensor(sizes)
        return BatchedDataDict(
            {
                "output_ids": output,
                "logprobs": logprobs,
                "generation_lengths": generated,
                "unpadded_sequence_lengths": lengths + generated,
                "truncated": torch.zeros(rows, dtype=torch.bool),
            }
        )

    def get_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        return BatchedDataDict({"logprobs": data["generation_logprobs"].clone()})

    def get_reference_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        scores = data["generation_logprobs"].clone()
        return BatchedDataDict({"reference_policy_logprobs": scores})

    def train(self, data: BatchedDataDict, loss_fn: Any) -> dict[str, Any]:
        self.updates.append(data)
        return {"loss": 0.5, "grad_norm": 1.0}

    def shutdown(self) -> None:
        self.ended = True
