"""A policy of bigrams and a streaming generator of its own copy of them.

Real in everything but the network: log-probs, gradients, weights that move, tokens that
different versions of the weights have sampled, and requests that end one by one.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.backends.training.base import ModelOutput
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.generation.interfaces import GenerationInterface
from nemo_rl.models.policy.interfaces import PolicyInterface

EOS = 2


class TablePolicy(PolicyInterface):
    """The log-probability of a token depends on the token before it alone."""

    def __init__(self, size: int, *, rate: float = 60.0, delay_s: float = 0.0) -> None:
        self.table = torch.zeros(size, size, requires_grad=True)
        self.rate, self.delay_s = rate, delay_s
        self.trained: list[BatchedDataDict] = []

    def _logprobs(self, batch: Any) -> torch.Tensor:
        ids = batch["input_ids"]
        scores = torch.log_softmax(self.table[ids[:, :-1]], -1)
        chosen = scores.gather(-1, ids[:, 1:, None])[..., 0]
        return torch.nn.functional.pad(chosen, (1, 0))

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        raise NotImplementedError("its generator does")

    def get_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        return BatchedDataDict({"logprobs": self._logprobs(data).detach()})

    def train(self, data: BatchedDataDict, loss_fn: Any) -> dict[str, Any]:
        self.trained.append(data)
        valid = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
        batch = {
            **data,
            "global_valid_tokens": valid.sum(),
            "global_valid_seqs": data["sample_mask"].sum(),
        }
        loss, _ = loss_fn(batch, ModelOutput(logprobs=self._logprobs(data)))
        (gradient,) = torch.autograd.grad(loss, self.table)
        with torch.no_grad():
            self.table -= self.rate * gradient
        time.sleep(self.delay_s * random.random())
        return {"loss": float(loss.detach())}

    def export_weights(self) -> dict[str, torch.Tensor]:
        return {"table": self.table.detach().clone()}

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        torch.save(self.table.detach(), path / "table.pt")

    def load_checkpoint(self, path: Path) -> None:
        with torch.no_grad():
            self.table.copy_(torch.load(path / "table.pt"))


class _Running:
    def __init__(self, request: GenerationRequest) -> None:
        self.request, self.rng = request, random.Random(request.seed)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []

    def result(self, reason: str) -> GenerationResult:
        return GenerationResult(
            id=self.request.id,
            token_ids=self.tokens,
            logprobs=self.logprobs,
            versions=self.versions,
            finish_reason=reason,
        )


class TableGenerator(GenerationInterface):
    """Every poll samples a token of each running response, ``slots`` at a time.

    Args:
        max_new_tokens: longest response.
        delay_s: longest time of such a turn.
        fail_at: number of the turn that raises.
    """

    def __init__(
        self, max_new_tokens: int, *, slots: int = 64, delay_s: float = 0.0
    ) -> None:
        self.max_new_tokens, self.slots = max_new_tokens, slots
        self.delay_s, self.fail_at = delay_s, None
        self.version, self.turns = 0, 0
        self.submitted: list[GenerationRequest] = []
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, GenerationResult] = {}
        self._calls = 0

    def update_weights(self, weights: Any, version: int = 1) -> None:
        with self._lock:
            self.table = torch.log_softmax(weights["table"].double(), -1)
            self.version = version

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        with self._lock:
            self.submitted += requests
            for request in requests:
                assert request.id not in self._running
                self._running[request.id] = _Running(request)

    def poll(self, ids: Sequence[str], timeout_s: float) -> list[GenerationResult]:
        end = time.monotonic() + timeout_s
        while True:
            with self._lock:
                self._turn()
                found = [self._ended.pop(name) for name in ids if name in self._ended]
            if found or time.monotonic() > end:
                return found
            time.sleep(self.delay_s * random.random())

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        with self._lock:
            ended = [self._ended.pop(name) for name in ids if name in self._ended]
            running = [self._running.pop(n) for n in ids if n in self._running]
            return ended + [one.result("abort") for one in running]

    def prepare_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""

    def finish_generation(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to let go of."""

    def generate(self, data: BatchedDataDict, greedy: bool) -> BatchedDataDict:
        with self._lock:
            self._calls += 1
            call = self._calls
        lengths = data["input_lengths"].tolist()
        requests = [
            GenerationRequest(
                id=f"call-{call}/{row}",
                prompt_ids=data["input_ids"][row, : lengths[row]].tolist(),
                seed=int(data["sampling_seed"][row]),
                max_new_tokens=self.max_new_tokens,
                greedy=greedy,
            )
            for row in range(data.size)
        ]
        self.submit(requests)
        waiting, results = {r.id: n for n, r in enumerate(requests)}, {}
        while waiting:
            for result in self.poll(list(waiting), 5.0):
                results[waiting.pop(result.id)] = result
        width = max(lengths) + self.max_new_tokens
        output = {
            "output_ids": torch.zeros(data.size, width, dtype=torch.int64),
            "logprobs": torch.zeros(data.size, width),
            "token_versions": torch.full((data.size, width), -1),
        }
        for row, start in enumerate(lengths):
            result, end = results[row], start + len(results[row].token_ids)
            output["output_ids"][row, :start] = data["input_ids"][row, :start]
            output["output_ids"][row, start:end] = torch.tensor(result.token_ids)
            output["logprobs"][row, start:end] = torch.tensor(result.logprobs)
            output["token_versions"][row, start:end] = torch.tensor(result.versions)
        sizes = torch.tensor([len(results[r].token_ids) for r in range(data.size)])
        reasons = [results[row].finish_reason for row in range(data.size)]
        return BatchedDataDict(
            {
                **output,
                "generation_lengths": sizes,
                "unpadded_sequence_lengths": sizes + data["input_lengths"],
                "truncated": torch.tensor([r == "length" for r in reasons]),
            }
        )

    def scores_of(self, texts: list[list[int]]) -> torch.Tensor:
        """Log-probs [b, V] of the next token."""
        return self.table[[text[-1] for text in texts]]

    def _turn(self) -> None:
        self.turns += 1
        if self.fail_at is not None and self.turns >= self.fail_at:
            raise OSError("the generator's machine is gone")
        chosen = list(self._running.values())[: self.slots]
        if not chosen:
            return
        texts = [
            [*one.request.prompt_ids, *one.request.begun_ids, *one.tokens]
            for one in chosen
        ]
        for one, scores in zip(chosen, self.scores_of(texts), strict=True):
            request = one.request
            if request.greedy:
                token = int(scores.argmax())
            else:
                total = scores.exp().cumsum(-1)
                token = int(torch.searchsorted(total, one.rng.random()))
                token = min(token, len(scores) - 1)
            one.tokens.append(token)
            one.logprobs.append(float(scores[token]))
            one.versions.append(self.version)
            length = len(request.begun_ids) + len(one.tokens)
            if token == EOS or length >= request.max_new_tokens:
                reason = "stop" if token == EOS else "length"
                self._ended[request.id] = one.result(reason)
                del self._running[request.id]
