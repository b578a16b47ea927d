"""What a generation engine must offer; knows no engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from nemo_rl.backends import factory


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How responses are sampled.

    Attributes:
        max_new_tokens: longest response, the stop token included.
        max_total_length: prompt and response together never exceed it.
        temperature: divides the logits; 0 is greedy.
        top_p: nucleus of this much probability.
        top_k: the k likeliest tokens; None means all.
        stop_token_ids: a response ends with the first of these, which stays in it.
        stop_strings: a response ends once its text contains one of these.
        batch_size: rows sampled at once on a rank; None means all.
    """

    max_new_tokens: int
    max_total_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One response that is wanted of a streaming engine.

    Example::

        GenerationRequest(id="7/3", prompt_ids=[5, 17, 60], seed=11, max_new_tokens=8)

    Attributes:
        id: unique among those that run.
        prompt_ids: tokens before the response.
        seed: decides the samples, whatever else runs beside them.
        max_new_tokens: longest response, the stop token included.
        greedy: take the likeliest token.
        stop_strings: of this row, beside the engine's own.
        begun_ids: tokens of the response that an earlier engine has sampled already;
            they are read and not sampled anew, and count as part of the response.
    """

    id: str
    prompt_ids: list[int]
    seed: int
    max_new_tokens: int
    greedy: bool = False
    stop_strings: tuple[str, ...] = ()
    begun_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """A response of a streaming engine, whole or aborted.

    Example::

        GenerationResult(
            id="7/3",
            token_ids=[42, 2],
            logprobs=[-0.5, -0.1],
            versions=[3, 4],
            finish_reason="stop",
        )

    Attributes:
        id: of its request.
        token_ids: what was sampled, without ``begun_ids``.
        logprobs: of each token under ``softmax(logits / temperature)``.
        versions: of the weights that sampled each token.
        finish_reason: ``"stop"``, ``"length"`` or ``"abort"``.
    """

    id: str
    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    finish_reason: str


class GenerationBackend(Protocol):
    """An engine on one rank. Every rank of the group calls every method, in order."""

    def setup(self, config: Any) -> None:
        """Make the engine ready to sample; gets the training engine of the rank."""

    def generate(
        self, prompts: Mapping[str, Any], sampling_params: SamplingParams
    ) -> dict[str, Tensor]:
        """Sample one response per row.

        Args:
            prompts: ``input_ids`` [B, S] right-padded, ``input_lengths`` [B], and
                ``sampling_seed`` [B] int64: a row's randomness depends on its seed
                alone, not on its batch, rank or layout.
            sampling_params: how.

        Returns:
            On the CPU: ``output_ids`` [B, S + N] right-padded prompt and response,
            ``unpadded_sequence_lengths`` [B], ``generation_lengths`` [B],
            ``logprobs`` [B, S + N] fp32 (of each sampled token under
            ``softmax(logits / temperature)``, 0 elsewhere), ``truncated`` [B] bool
            (ended at a length limit, not at a stop).
        """
        ...

    def update_weights(self, state_dict: Any) -> None:
        """Take new weights, a dict of names to tensors.

        Not called where the engine has an attribute ``shares_weights`` that is true.
        """

    def shutdown(self) -> None:
        """Release memory."""


_Class = TypeVar("_Class", bound=type)


def register_generation_backend(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make an engine selectable by ``name``."""
    return factory.register("generation", name)
