"""WorkerExtension: what every process of an engine can do besides vLLM's own work.

vLLM mixes it into its worker class and imports this module before the model is built.
Arguments arrive as bytes, which every executor hands on unchanged; results are plain.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform

from nemo_rl.backends.generation.vllm import cpu_weights, held
from nemo_rl.backends.generation.vllm.answers import answering
from nemo_rl.backends.refit.base import TensorSpec, open_receiver
from nemo_rl.backends.refit.digest import dtype_name
from nemo_rl.utils.exceptions import RefitError

# What vLLM would warn of, ``_load`` checks.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel("ERROR")

if current_platform.is_cpu():
    cpu_weights.keep_readable()


class WorkerExtension:
    """Methods of one process; each is called on all processes of the engine at once."""

    model_runner: Any
    device: Any
    rank: int

    @answering
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

    @answering
    def nemo_rl_load_files(self, folder: str, partial: bool = False) -> int:
        """Replace the weights by those of a folder's safetensors files; how many.

        Args:
            folder: on this host.
            partial: allow that parameters of the engine are in none of them.

        Raises:
            RefitError: some are in none of them.
        """
        return self._load(_tensors_of(folder, str(self.device)), partial)

    @answering
    def nemo_rl_held(self, specs: bytes) -> bytes:
        """What this process holds: a pickled ``RankWeights``."""
        model = self.model_runner.model
        return pickle.dumps(held.held_weights(model, pickle.loads(specs)))

    @answering
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

    @answering
    def nemo_rl_die_with(self, owner: int) -> None:
        """End this process, and vLLM's core that it belongs to, when the owner ends.

        A core would go on, and keep its memory, if the process that started it is
        killed.

        Args:
            owner: process id of who started the core, on this host.
        """
        parent, watched = os.getppid(), os.pidfd_open(owner)

        def watch() -> None:
            select.select([watched], [], [])
            if parent not in (owner, 1):
                os.kill(parent, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch, name="die-with-owner", daemon=True).start()

    def _load(
        self, weights: Iterable[tuple[str, Tensor]], partial: bool = False
    ) -> int:
        """Load all weights, or raise with no layer in between two states."""
        model, config = self.model_runner.model, self.model_runner.model_config
        counted = _Counted(weights)
        initialize_layerwise_reload(model)
        try:
            model.load_weights(iter(counted))
        except BaseException:
            _forget_parts(model)
            raise
        finally:
            finalize_layerwise_reload(model, config)
            cpu_weights.repack_tied(model)
        missing = [] if partial else held.unsent_parameters(model, counted.specs)
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise RefitError(
                f"{len(counted.specs)} tensors were sent, and they leave "
                f"{', '.join(missing[:3])}{more} of the engine unfilled: send all "
                "weights of the model, under their Hugging Face names."
            )
        return len(counted.specs)


def _forget_parts(model: nn.Module) -> None:
    """Drop what layers have got so far that are not complete; they stay as they were.

    vLLM would build them of it and of memory that nobody wrote, and would count what
    is sent the next time on top.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        info.load_numel, info.loaded_weights = 0, []


class _Counted:
    """Copies of the tensors of a stream, and which there were.

    vLLM keeps tensors until their layer is complete; each would keep a whole bucket.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self._weights = weights
        self.specs: list[TensorSpec] = []

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._weights:
            shape = tuple(tensor.shape)
            self.specs.append(TensorSpec(name, dtype_name(tensor.dtype), shape))
            yield name, tensor.clone()


def _tensors_of(folder: str, device: str) -> Iterator[tuple[str, Tensor]]:
    from pathlib import Path

    from safetensors import safe_open

    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)
