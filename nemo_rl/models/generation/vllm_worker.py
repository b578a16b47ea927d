"""VllmGenerationWorker: the process of one engine, called by the driver or by hand."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nemo_rl.backends.generation.base import (
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from nemo_rl.backends.generation.vllm.backend import VLLMBackend
from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.distributed.rank import RankInfo
from nemo_rl.models.generation.vllm_config import settings_of
from nemo_rl.utils.exceptions import NemoRLError, TrainingError


class VllmGenerationWorker:
    """One engine, in this process or in an actor.

    Args:
        model_name: folder or name of the model.
        settings: of the engine, in place of the keywords.
        **kwargs: fields of ``VllmConfig``.

    Example:
        >>> worker = VllmGenerationWorker("my-model", max_new_tokens=16)
        ... # doctest: +SKIP
        >>> worker.generate(torch.tensor([[1, 2, 3]]))  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name: str,
        *,
        settings: VllmSettings | None = None,
        **kwargs: Any,
    ) -> None:
        if settings is None:
            use_gpus = torch.cuda.is_available()
            options = {**kwargs, "model_name": model_name}
            settings = settings_of(options, use_gpus=use_gpus)
        self.settings = settings
        self.backend = VLLMBackend()
        self.backend.setup(settings)

    def generate(
        self,
        input_ids: torch.Tensor,
        *,
        input_lengths: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        sampling_seed: torch.Tensor | None = None,
        greedy: bool = False,
    ) -> dict[str, torch.Tensor]:
        """One response per row; see ``GenerationBackend.generate``.

        Args:
            input_ids: [B, S] int64, right-padded.
            input_lengths: [B]; without, ``attention_mask`` counts, or rows are full.
            attention_mask: [B, S].
            sampling_seed: [B] int64; a row's index where it is not given.
            greedy: take the likeliest token.
        """
        rows, width = input_ids.shape
        if input_lengths is None:
            full = torch.full((rows,), width)
            input_lengths = full if attention_mask is None else attention_mask.sum(-1)
        if sampling_seed is None:
            sampling_seed = torch.arange(rows)
        prompts = {
            "input_ids": input_ids,
            "input_lengths": input_lengths,
            "sampling_seed": sampling_seed,
        }
        params = SamplingParams(
            max_new_tokens=self.settings.max_new_tokens,
            max_total_length=self.settings.max_model_len,
            temperature=0.0 if greedy else self.settings.temperature,
        )
        return self.backend.generate(prompts, params)

    def ping(self) -> int:
        """The version of the weights; see ``VLLMBackend.ping``."""
        return self.backend.ping()

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """See ``VLLMBackend.submit``."""
        self.backend.submit(requests)

    def collect(self, timeout_s: float) -> list[GenerationResult]:
        """See ``VLLMBackend.collect``."""
        return self.backend.collect(timeout_s)

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """See ``VLLMBackend.abort``."""
        return self.backend.abort(ids)

    def update_weights(
        self, weights_handle: Mapping[str, torch.Tensor], version: int = 1
    ) -> None:
        """Take new weights: Hugging Face names to full tensors, all of them."""
        self.backend.update_weights(weights_handle, version)

    def receive_weights(
        self, link: Any, first_index: int, version: int, recompute: bool = False
    ) -> list[dict[str, Any]]:
        """See ``VLLMBackend.receive_weights``."""
        return self.backend.receive_weights(link, first_index, version, recompute)

    def held(self, specs: Sequence[Any]) -> list[Any]:
        """See ``VLLMBackend.held``."""
        return self.backend.held(specs)

    def sleep(self) -> None:
        """See ``VLLMBackend.sleep``."""
        self.backend.sleep()

    def wake(self, tags: list[str] | None = None) -> None:
        """See ``VLLMBackend.wake``."""
        self.backend.wake(tags)

    def shutdown(self) -> None:
        """End the engine."""
        self.backend.shutdown()


class EngineWorker(VllmGenerationWorker):
    """As a worker group constructs its workers; an engine needs no rank."""

    def __init__(self, rank_info: RankInfo, settings: VllmSettings) -> None:
        del rank_info
        super().__init__(settings.model, settings=settings)

    def attempt(self, method: str, *args: Any) -> tuple[bool, Any]:
        """Call a method; (True, its result), or (False, the error).

        A worker group ends with the first error that it sees, and an engine goes on
        after most.
        """
        try:
            return True, getattr(self, method)(*args)
        except NemoRLError as error:
            return False, error
        except Exception as error:  # noqa: BLE001 - handed back, see above
            tail = "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
            return False, TrainingError(
                f"{method}() failed: {type(error).__name__}: {error}\n"
                f"Last lines of its traceback:\n{tail}"
            )
