"""GenerationRequests as vLLM's, and what vLLM says of them as GenerationResults.

Knows tokens, log-probs and versions; no engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.utils.exceptions import ConfigurationError, DataError, TrainingError
from nemo_rl.utils.seeding import derive_seed

_SEEDS = 2**63
"""vLLM takes -1 for no seed at all, and keeps seeds as int64 on GPUs."""


def check_request(request: GenerationRequest, settings: VllmSettings) -> None:
    """Refuse what an engine cannot answer, before it gets there.

    Raises:
        DataError: the prompt is empty.
        ConfigurationError: it leaves no room for a response, or wants stop strings of
            an engine without a tokenizer.
    """
    if not request.prompt_ids:
        raise DataError(f"request {request.id}: the prompt has no token")
    length, limit = len(request.prompt_ids), settings.max_model_len
    if length >= limit:
        raise ConfigurationError(
            f"request {request.id}: a prompt of {length} tokens leaves no room for a "
            f"response: the engine holds {limit} tokens. Raise "
            f"policy.max_total_sequence_length (or max_model_len) to at least "
            f"{length + 1}, or shorten the prompts."
        )
    if request.stop_strings and not settings.with_tokenizer:
        raise ConfigurationError(
            f"request {request.id} ends with one of the strings "
            f"{list(request.stop_strings)}, and the engine has no tokenizer: set "
            "policy.generation.vllm_cfg.skip_tokenizer_init to false."
        )


def ended_before(request: GenerationRequest, settings: VllmSettings) -> str | None:
    """Why nothing is left to sample: "stop", "length"; None: something is.

    A response that was begun elsewhere may be complete already.
    """
    begun = request.begun_ids
    if begun and begun[-1] in settings.stop_token_ids:
        return "stop"
    whole = len(request.prompt_ids) + len(begun) >= settings.max_model_len
    return "length" if whole or len(begun) >= request.max_new_tokens else None


def sampling_arguments(
    request: GenerationRequest, settings: VllmSettings
) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams for one response.

    What is greedy has temperature 0. Its log-probs are those of temperature 1, but
    where the model divides its logits, see ``VllmSettings.scales_logits``.
    """
    greedy = request.greedy or settings.temperature == 0.0
    strings = [*settings.stop_strings, *request.stop_strings]
    given: dict[str, Any] = {
        "n": 1,
        "seed": None if greedy else _seed(request),
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
    if strings:
        given |= {
            "stop": strings,
            "include_stop_str_in_output": True,
            "detokenize": True,
            "skip_special_tokens": False,
        }
    return given


def _seed(request: GenerationRequest) -> int:
    """Of the rest of a response: the numbers of its beginning are used up."""
    if begun := len(request.begun_ids):
        return derive_seed(request.seed, "continued", begun)
    return request.seed % _SEEDS


def prompt_of(request: GenerationRequest, epoch: int) -> dict[str, Any]:
    """vLLM's prompt: tokens, and a salt that keeps caches of other weights apart.

    Args:
        request: its prompt and what is there of its response.
        epoch: how often the engine's weights were replaced.
    """
    ids = [*request.prompt_ids, *request.begun_ids]
    return {"type": "token", "prompt_token_ids": ids, "cache_salt": f"epoch {epoch}"}


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
    if not tokens:
        return []
    if logprobs is None:
        raise ValueError("vLLM returned no log-probs for sampled tokens")
    return [
        float(candidates[token].logprob)
        for token, candidates in zip(tokens, logprobs, strict=True)
    ]


def reason_of(output: Any) -> str:
    """``GenerationResult.finish_reason`` of a vLLM output that is finished.

    Raises:
        TrainingError: vLLM could not go on with the response.
    """
    [completion] = output.outputs
    reason = str(completion.finish_reason)
    if reason not in ("stop", "length", "abort"):
        raise TrainingError(
            f"vLLM ended the response {output.request_id} with {reason!r}; see the log "
            "of its process"
        )
    return reason


def duplicates(requests: Sequence[GenerationRequest], running: Iterable[str]) -> None:
    """Refuse ids that run already; their responses could not be told apart.

    Raises:
        TrainingError: two requests have one id.
    """
    seen = set(running)
    for request in requests:
        if request.id in seen:
            raise TrainingError(f"two requests that run have the id {request.id!r}")
        seen.add(request.id)


class Outbox:
    """Ended responses, on their way from an engine's thread to whoever collects."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._ended: list[GenerationResult] = []
        self._failure: Exception | None = None

    def put(self, results: Iterable[GenerationResult]) -> None:
        """Hand over."""
        with self._news:
            self._ended += results
            self._news.notify_all()

    def fail(self, failure: Exception) -> None:
        """Nothing comes any more; the first reason counts."""
        with self._news:
            self._failure = self._failure or failure
            self._news.notify_all()

    def check(self) -> None:
        """Raise the reason why nothing comes any more, if there is one."""
        if self._failure is not None:
            raise self._failure

    def take(self, timeout_s: float) -> list[GenerationResult]:
        """What has ended since the last call; waits for one at most so long.

        Raises:
            Exception: what ended the engine, after its last result was taken.
        """
        with self._news:
            self._news.wait_for(lambda: self._ended or self._failure, timeout_s)
            if not self._ended:
                self.check()
            found, self._ended = self._ended, []
        return found
