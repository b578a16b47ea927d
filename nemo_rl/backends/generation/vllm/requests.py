"""GenerationRequests as vLLM's, and what vLLM says of them as GenerationResults.

Knows tokens, log-probs and versions; no engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.backends.generation.vllm.settings import VllmSettings


def sampling_arguments(
    request: GenerationRequest, settings: VllmSettings
) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams for one response.

    What is greedy has temperature 0; its log-probs are those of temperature 1.
    """
    greedy = request.greedy or settings.temperature == 0.0
    strings = [*settings.stop_strings, *request.stop_strings]
    given: dict[str, Any] = {
        "n": 1,
        "seed": None if greedy else request.seed,
        "max_tokens": request.max_new_tokens - len(request.begun_ids),
        "temperature": 0.0 if greedy else settings.temperature,
        "logprobs": 0,  # of the sampled token alone
        # The end token is one of these; both would end a response.
        "stop_token_ids": list(settings.stop_token_ids),
        "ignore_eos": True,
        "detokenize": False,
    }
    if settings.scales_logits and not greedy:
        given["temperature"] = 1.0
    if not greedy:
        given["top_p"] = settings.top_p
        given["top_k"] = settings.top_k or 0
    if strings and settings.with_tokenizer:
        given |= {
            "stop": strings,
            "include_stop_str_in_output": True,
            "detokenize": True,
            "skip_special_tokens": False,
        }
    return given


def prompt_of(request: GenerationRequest, version: int) -> dict[str, Any]:
    """vLLM's prompt: tokens, and a salt that keeps caches of other weights apart."""
    ids = [*request.prompt_ids, *request.begun_ids]
    return {"prompt_token_ids": ids, "cache_salt": f"v{version}"}


@dataclass
class Running:
    """What a running response has so far."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def extend(self, output: Any, version: int) -> None:
        """Take new tokens of a vLLM ``CompletionOutput`` in its delta form."""
        tokens = list(output.token_ids)
        self.token_ids += tokens
        self.logprobs += sampled_logprobs(tokens, output.logprobs)
        self.versions += [version] * len(tokens)

    def result(self, finish_reason: str) -> GenerationResult:
        """What there is, as a result."""
        return GenerationResult(
            id=self.request.id,
            token_ids=self.token_ids,
            logprobs=self.logprobs,
            versions=self.versions,
            finish_reason=finish_reason,
        )


def sampled_logprobs(tokens: list[int], logprobs: Iterable[Any] | None) -> list[float]:
    """Of each sampled token, from vLLM's dictionaries of candidates.

    Raises:
        ValueError: there are none; they are never made up.
    """
    if logprobs is None:
        raise ValueError("vLLM returned no log-probs for sampled tokens")
    return [
        float(candidates[token].logprob)
        for token, candidates in zip(tokens, logprobs, strict=True)
    ]
