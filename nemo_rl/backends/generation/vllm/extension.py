"""WorkerExtension: what every process of an engine can do besides vLLM's own work.

vLLM mixes it into its worker class and imports this module before the model is built.
Arguments arrive as bytes, which every executor hands on unchanged; results are plain.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.platforms import current_platform

from nemo_rl.backends.generation.vllm import cpu_weights, held
from nemo_rl.backends.refit.base import open_receiver

if current_platform.is_cpu():
    cpu_weights.keep_readable()


class WorkerExtension:
    """Methods of one process; each is called on all processes of the engine at once."""

    model_runner: Any
    device: Any
    rank: int

    def nemo_rl_receive(self, link: bytes, first_index: int) -> dict[str, Any]:
        """Replace the weights by those that arrive.

        Args:
            link: a pickled ``RefitLink`` of the driver.
            first_index: this engine's first receiver; its processes follow one another.

        Returns:
            The receiver's ``TransferStats`` as plain data.
        """
        device = torch.device(self.device)
        with open_receiver(
            pickle.loads(link), first_index + self.rank, device
        ) as receiver:
            self._load(receiver)
        return receiver.stats.as_dict()

    def nemo_rl_load_files(self, folder: str) -> int:
        """Replace the weights by those of a folder's safetensors files; how many."""
        return self._load(_tensors_of(folder, str(self.device)))

    def nemo_rl_held(self, specs: bytes) -> bytes:
        """What this process holds: a pickled ``RankWeights``."""
        model = self.model_runner.model
        return pickle.dumps(held.held_weights(model, pickle.loads(specs)))

    def nemo_rl_divide_logits(self, temperature: float) -> int:
        """Let the model divide its logits by the temperature; how many places do."""
        found = [
            module
            for module in self.model_runner.model.modules()
            if isinstance(module, LogitsProcessor)
        ]
        for module in found:
            module.scale = module.scale / temperature
        return len(found)

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        counted = _Counted(weights)
        self.model_runner.reload_weights(weights_iterator=iter(counted))
        cpu_weights.repack_tied(self.model_runner.model)
        return counted.number


class _Counted:
    """Copies of the tensors of a stream, and how many there were.

    vLLM keeps tensors until their layer is complete; each would keep a whole bucket.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._weights, self.number = weights, 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._weights:
            self.number += 1
            yield name, tensor.clone()


def _tensors_of(folder: str, device: str) -> Iterator[tuple[str, Tensor]]:
    from pathlib import Path

    from safetensors import safe_open

    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)
