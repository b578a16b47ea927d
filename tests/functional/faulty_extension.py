"""vLLM's worker with faults that only a rank of its own can have."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from nemo_rl.backends.generation.vllm.extension import WorkerExtension


class FaultyExtension(WorkerExtension):
    """Breaks a parameter in place, on a rank that is not the first."""

    rank: int

    def take_slice_of_first(self, name: str) -> None:
        """Give every rank the first one's slice, as a wrong rank number would."""
        weight = self._weight(name)
        first = weight.clone()
        dist.broadcast(first, src=0)
        weight.copy_(first)

    def flip_on_last(self, name: str) -> None:
        """Flip the lowest bit of the first element, on the last rank alone."""
        if self.rank == dist.get_world_size() - 1:
            self._weight(name).view(torch.int32)[0] ^= 1

    def _weight(self, name: str) -> Any:
        return self.model_runner.model.get_parameter(name).data
