"""VLLMBackend: one vLLM engine in this process, whichever kind it is.

Knows requests, weights and memory of one engine; no driver, no other replica. The
engine's processes (tensor and pipeline parallel) are vLLM's own children.
"""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_rl.backends.generation.base import (
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from nemo_rl.backends.generation.rows import output_columns, row_requests
from nemo_rl.backends.generation.vllm.requests import check_request
from nemo_rl.backends.generation.vllm.settings import VllmSettings, process_variables
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import ConfigurationError, TrainingError
from nemo_rl.utils.imports import require

_WAIT_S = 60.0


class VLLMBackend:
    """Samples with an engine that has its own copy of the weights.

    Example:
        >>> backend = VLLMBackend()  # doctest: +SKIP
        >>> backend.setup(VllmSettings(model="my-model", dtype="bfloat16",
        ...     max_model_len=2048, use_gpu=True, load_format="auto"))  # doctest: +SKIP
    """

    shares_weights = False

    def setup(self, config: VllmSettings) -> None:
        """Start the engine.

        Raises:
            ConfigurationError: vLLM is not there, or refuses the model or a setting.
        """
        self.settings = config
        self._batches = itertools.count()
        given = env.inherited()
        variables = process_variables(config)
        env.apply({k: v for k, v in variables.items() if k not in given})
        require("vllm", instead="set policy.generation.backend to 'megatron'")
        self._engine: Any = _start(config)
        if config.scales_logits:
            found = self._engine.rpc("nemo_rl_divide_logits", config.temperature)
            if not all(found):
                self.shutdown()
                raise ConfigurationError(
                    f"policy.generation.temperature={config.temperature} together with "
                    "top_p or top_k: vLLM's model of this family does not let its "
                    "logits be scaled. Set temperature to 1.0, or top_p to 1.0 and "
                    "top_k to null."
                )

    @property
    def version(self) -> int:
        """Of the weights; -1 while they are random."""
        return self._engine.version

    def ping(self) -> int:
        """The version, if the engine is alive.

        Raises:
            WorkerDied: it is not.
        """
        self._engine.check()
        return self.version

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Start responses; returns at once.

        Raises:
            ConfigurationError: a request cannot be answered; none was started.
            TrainingError: the weights are random, or an id runs already.
        """
        self._require_weights()
        for request in requests:
            check_request(request, self.settings)
        self._engine.submit(requests)

    def collect(self, timeout_s: float) -> list[GenerationResult]:
        """Those that have ended since the last call; waits for one at most so long.

        Not to be called beside ``generate``, which collects too.

        Raises:
            WorkerDied: the engine has ended.
        """
        return self._engine.collect(timeout_s)

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """End responses; what each has so far. Those that have ended are left out."""
        return self._engine.abort(ids)

    def generate(
        self, prompts: Mapping[str, Any], sampling_params: SamplingParams
    ) -> dict[str, Tensor]:
        """See ``GenerationBackend.generate``.

        Stops, top-p and top-k are those of ``setup``.

        Raises:
            ConfigurationError: another temperature than that of ``setup``, or 0.
        """
        temperature = sampling_params.temperature
        if temperature not in (0.0, self.settings.temperature):
            raise ConfigurationError(
                f"the engine was set up for temperature {self.settings.temperature:g} "
                f"or greedy, not {temperature:g}: start one with that temperature."
            )
        requests = row_requests(
            prompts,
            max_new_tokens=sampling_params.max_new_tokens,
            max_total_length=min(
                sampling_params.max_total_length, self.settings.max_model_len
            ),
            greedy=temperature == 0.0,
            prefix=f"{next(self._batches)}/",
        )
        self.submit(requests)
        found: dict[str, GenerationResult] = {}
        while len(found) < len(requests):
            found |= {result.id: result for result in self.collect(_WAIT_S)}
        return output_columns(requests, [found[request.id] for request in requests])

    def receive_weights(
        self, link: Any, first_index: int, version: int, recompute: bool = False
    ) -> list[dict[str, Any]]:
        """Take the weights of a refit between two steps; see ``WorkerExtension``.

        Args:
            link: a ``RefitLink``.
            first_index: receiver number of this engine's first process.
            version: of the weights, from now on part of every token.
            recompute: compute the cache of running responses anew.

        Returns:
            A report of every process.
        """
        return self._engine.update(
            "nemo_rl_receive",
            pickle.dumps(link),
            first_index,
            version=version,
            recompute=recompute,
        )

    def update_weights(self, state_dict: Mapping[str, Any], version: int = 1) -> None:
        """Take full tensors under their Hugging Face names."""
        from safetensors.torch import save_file

        tensors = {
            name: torch.as_tensor(w).detach().contiguous().cpu().clone()
            for name, w in state_dict.items()
        }
        with tempfile.TemporaryDirectory(prefix="nemo_rl-weights-") as folder:
            save_file(tensors, f"{folder}/model.safetensors")
            self._engine.update("nemo_rl_load_files", folder, version=version)

    def held(self, specs: Sequence[Any]) -> list[Any]:
        """``RankWeights`` of each process: what it holds of the tensors of a plan."""
        found = self._engine.rpc("nemo_rl_held", pickle.dumps(list(specs)))
        return [pickle.loads(part) for part in found]

    def sleep(self) -> None:
        """Free the GPU: weights to the host's memory, the cache forgotten."""
        if self.settings.use_gpu and self.settings.colocated:
            self._engine.sleep()

    def wake(self, tags: list[str] | None = None) -> None:
        """Take the GPU back: "weights" before a refit, "kv_cache" after it."""
        if self.settings.use_gpu and self.settings.colocated:
            self._engine.wake(tags)

    def shutdown(self) -> None:
        """End the engine and its processes."""
        self._engine.close()

    def _require_weights(self) -> None:
        if self._engine.version < 0:
            raise TrainingError(
                "the engine still has the random weights it was started with: send it "
                "the trainer's (refit) before generating, or set "
                "policy.generation.vllm_cfg.load_format to 'auto'."
            )


def _start(settings: VllmSettings) -> Any:
    # Steps of a pipeline overlap; AsyncLLM's core lets them end before an update.
    if settings.async_engine or settings.pipeline_parallel > 1:
        from nemo_rl.backends.generation.vllm.async_engine import AsyncEngine as Engine
    else:
        from nemo_rl.backends.generation.vllm.engine_loop import EngineLoop as Engine
    return Engine(settings)
