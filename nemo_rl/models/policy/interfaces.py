"""PolicyInterface: what an algorithm may ask of a policy, whoever implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from nemo_rl.backends.training.base import LossFunction
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


class PolicyInterface(ABC):
    """A policy that generates, scores and learns. Shapes: ``data/interfaces.py``."""

    @abstractmethod
    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample one response per row of a GenerationDatumSpec batch.

        Returns:
            A GenerationOutputSpec batch.
        """

    @abstractmethod
    def get_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``logprobs`` [B, S] fp32 of the tokens under the current weights."""

    @abstractmethod
    def get_reference_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``reference_policy_logprobs`` [B, S] fp32 under the initial weights."""

    @abstractmethod
    def train(self, data: BatchedDataDict, loss_fn: LossFunction) -> dict[str, Any]:
        """Update the weights once per global batch; returns metrics."""
