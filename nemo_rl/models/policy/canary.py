"""Log-probs of the generator beside the trainer's: on fixed prompts and on rollouts.

Pure arithmetic on batches, but for the two callables that answer and score. Knows no
engine and no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemo_rl.distributed.batched_data_dict import BatchedDataDict

_TEXTS = (
    "The capital of France is",
    "Question: what is 17 + 25? Answer:",
    "def add(a, b):\n    return",
    "Once upon a time, there was a",
    '{"name": "Ada", "year":',
    "1, 1, 2, 3, 5, 8, 13,",
)
_UNTEXTUAL_LENGTHS = (5, 9, 13, 7)
"""Tokens of canaries without a tokenizer."""
_LONGEST = 16
"""Tokens of a canary's prompt at most."""

Generate = Callable[[BatchedDataDict], BatchedDataDict]
"""Prompts to a ``GenerationOutputSpec`` batch, by the path that rollouts take."""
Score = Callable[[BatchedDataDict], BatchedDataDict]
"""A batch to ``logprobs`` [B, S] under the trainer's weights and temperature."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """How far the generator's log-probs are from the trainer's.

    Attributes:
        tokens: how many were compared.
        mean_error: mean |difference|.
        max_error: largest |difference|; inf where one is not finite.
        mult_prob_error: mean exp|difference|.
        gen_kl: estimate of KL(generator || trainer) per token: mean(e^d - 1 - d), where
            d is trainer minus generator (k3 of Schulman 2020).
        slope: of the trainer's log-probs over the generator's, by least squares; NaN
            for fewer than three tokens.
        not_finite: tokens whose log-prob is not a finite number, of either side.
    """

    tokens: int
    mean_error: float
    max_error: float
    mult_prob_error: float
    gen_kl: float
    slope: float
    not_finite: int


def mismatch(generator: Tensor, trainer: Tensor, mask: Tensor) -> Mismatch:
    """Compare log-probs.

    Args:
        generator: [B, S] of sampling.
        trainer: [B, S] of the same tokens.
        mask: [B, S]; tokens to compare are not 0.
    """
    keep = mask.bool()
    left, right = generator[keep].double().cpu(), trainer[keep].double().cpu()
    finite = torch.isfinite(left) & torch.isfinite(right)
    broken = int((~finite).sum())
    left, right = left[finite], right[finite]
    delta = right - left
    size = delta.abs()
    if not len(delta):
        nan = math.nan
        worst = math.inf if broken else 0.0
        return Mismatch(
            tokens=broken,
            mean_error=worst,
            max_error=worst,
            mult_prob_error=nan,
            gen_kl=nan,
            slope=nan,
            not_finite=broken,
        )
    return Mismatch(
        tokens=len(delta) + broken,
        mean_error=math.inf if broken else float(size.mean()),
        max_error=math.inf if broken else float(size.max()),
        mult_prob_error=float(size.clamp(max=700).exp().mean()),
        gen_kl=float((delta.clamp(max=700).exp() - 1 - delta).mean()),
        slope=_slope(left, right),
        not_finite=broken,
    )


def _slope(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    square = float((x * x).sum())
    return float((x * y).sum()) / square if len(x) > 2 and square > 0 else math.nan


def canary_batch(
    prompts: int,
    max_new_tokens: int,
    *,
    tokenizer: Any = None,
    vocab_size: int = 0,
    special_ids: Sequence[int] = (),
    max_length: int | None = None,
) -> BatchedDataDict:
    """Fixed prompts, the same in every run of a model.

    Args:
        prompts: how many.
        max_new_tokens: of each answer; a column that generators obey.
        tokenizer: encodes short texts; without one, or where it knows nothing of a
            text, ids are drawn.
        vocab_size: ids to draw from.
        special_ids: never drawn.
        max_length: of prompt and answer; a prompt takes half of it at most.

    Returns:
        ``input_ids`` [P, S] right-padded, ``input_lengths``, ``sampling_seed`` and
        ``max_new_tokens`` [P].
    """
    vocab_size = vocab_size or len(tokenizer)
    longest = min(_LONGEST, max(1, (max_length or 2 * _LONGEST) // 2))
    special = set(special_ids)
    usual = [i for i in range(vocab_size) if i not in special]
    draw = torch.Generator().manual_seed(20)
    rows = []
    for number in range(prompts):
        size = (_UNTEXTUAL_LENGTHS[number % len(_UNTEXTUAL_LENGTHS)],)
        drawn = torch.randint(len(usual), size, generator=draw).tolist()
        row = [usual[i] for i in drawn]
        if tokenizer is not None:
            text = _TEXTS[number % len(_TEXTS)]
            row = list(tokenizer.encode(text, add_special_tokens=False)) or row
        rows.append(row[:longest])
    ids = torch.zeros(prompts, max(map(len, rows)), dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return BatchedDataDict(
        {
            "input_ids": ids,
            "input_lengths": torch.tensor([len(row) for row in rows]),
            "sampling_seed": torch.arange(prompts) + 7_000_000,
            "max_new_tokens": torch.full((prompts,), max_new_tokens),
        }
    )


@dataclass(frozen=True, kw_only=True)
class CanaryAnswer:
    """One canary: what was sampled and how either side judged it.

    Attributes:
        prompt_ids: tokens of the prompt.
        token_ids: tokens of the answer.
        generator: log-prob of each at sampling.
        trainer: log-prob of each under the trainer.
        errors: their mismatch.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    generator: list[float]
    trainer: list[float]
    errors: Mismatch


def run_canary(
    batch: BatchedDataDict, generate: Generate, score: Score
) -> list[CanaryAnswer]:
    """Have the generator answer the canaries and the trainer score the answers.

    Args:
        batch: of ``canary_batch``.
        generate: samples, with the temperature and options of rollouts.
        score: the trainer's log-probs.
    """
    output = generate(batch)
    starts = batch["input_lengths"]
    ends = torch.minimum(
        output["unpadded_sequence_lengths"], starts + batch["max_new_tokens"]
    )
    ids = output["output_ids"][:, : int(ends.max())]
    scored = BatchedDataDict({"input_ids": ids, "input_lengths": ends})
    trainer = score(scored)["logprobs"].float().cpu()
    generator = output["logprobs"].float().cpu()
    answers = []
    for row, (start, end) in enumerate(
        zip(starts.tolist(), ends.tolist(), strict=True)
    ):
        ours, theirs = generator[row, start:end], trainer[row, start:end]
        answers.append(
            CanaryAnswer(
                prompt_ids=ids[row, :start].tolist(),
                token_ids=ids[row, start:end].tolist(),
                generator=ours.tolist(),
                trainer=theirs.tolist(),
                errors=mismatch(ours, theirs, torch.ones_like(ours)),
            )
        )
    return answers


def rollout_mismatch(
    batch: BatchedDataDict, score: Score, rows: int, *, version: int | None = None
) -> Mismatch | None:
    """Compare log-probs of sampling with the trainer's on some rows of a rollout batch.

    Args:
        batch: ``input_ids``, ``input_lengths``, ``token_mask`` and
            ``generation_logprobs``; ``sample_mask`` and ``token_versions`` where they
            are there. With ``prev_logprobs`` nothing is scored.
        score: the trainer's log-probs.
        rows: at most so many, spread evenly.
        version: of the trainer's weights; tokens that other weights have sampled are
            left out, and those that come after them in a row.

    Returns:
        None where no token is left to compare.
    """
    mask = batch["token_mask"].clone()
    if "sample_mask" in batch:
        mask = mask * batch["sample_mask"][:, None]
    if version is not None and "token_versions" in batch:
        other = (batch["token_versions"] != version) & (mask > 0)
        # After a token of other weights the cache is theirs, too.
        mask = mask * (other.cumsum(1) == 0)
    mask[:, 0] = 0
    usable = [row for row, kept in enumerate(mask.bool().any(1).tolist()) if kept]
    if not usable or not rows:
        return None
    count = min(rows, len(usable))
    chosen = [usable[i * len(usable) // count] for i in range(count)]
    index = torch.tensor(chosen)
    if "prev_logprobs" in batch:
        trainer = batch["prev_logprobs"][index]
    else:
        lengths = batch["input_lengths"][index]
        longest = int(lengths.max())
        scored = score(
            BatchedDataDict(
                {
                    "input_ids": batch["input_ids"][index][:, :longest],
                    "input_lengths": lengths,
                }
            )
        )["logprobs"]
        trainer = torch.zeros(len(index), mask.shape[1])
        trainer[:, :longest] = scored[:, :longest].float().cpu()
    return mismatch(batch["generation_logprobs"][index], trainer, mask[index])
