"""Choose the next token from logits: temperature, top-k, top-p, one number per row.

Sampling inverts the cumulative distribution at a uniform number that belongs to the
row. So a response depends on its own seed and not on the rows beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.backends.generation.base import SamplingParams


def uniforms(seeds: Tensor, count: int) -> Tensor:
    """[B, count] float64 in [0, 1): ``count`` numbers from each row's own seed.

    Args:
        seeds: [B] int64.
        count: numbers per row.
    """
    generator = torch.Generator()
    rows = []
    for seed in seeds.tolist():
        generator.manual_seed(seed)
        rows.append(torch.rand(count, generator=generator, dtype=torch.float64))
    return torch.stack(rows) if rows else torch.empty(0, count, dtype=torch.float64)


def sample(
    logits: Tensor, uniform: Tensor, params: SamplingParams
) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability.

    Args:
        logits: [B, V] fp32 over the real vocabulary.
        uniform: [B] float64 in [0, 1); unused when greedy.
        params: temperature, top_k and top_p.

    Returns:
        Token ids [B] int64 and their log-probs [B] fp32 under
        ``softmax(logits / temperature)`` before top-k and top-p, the distribution in
        which the trainer computes its ratios; greedy reports temperature 1.
    """
    scaled = logits / params.temperature if params.temperature > 0 else logits
    logprobs = torch.log_softmax(scaled, dim=-1)
    if params.temperature == 0:
        tokens = logits.argmax(dim=-1)
    else:
        tokens = _invert(_filtered(logprobs, params), uniform.to(logits.device))
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def _filtered(logprobs: Tensor, params: SamplingParams) -> Tensor:
    """[B, V] float64 unnormalised probabilities that top-k and top-p leave."""
    probs = logprobs.double().exp()
    if params.top_k is not None and params.top_k < probs.shape[-1]:
        least = probs.topk(params.top_k, dim=-1).values[:, -1:]
        probs = probs.masked_fill(probs < least, 0.0)
    if params.top_p < 1.0:
        ranked, order = probs.sort(dim=-1, descending=True)
        before = ranked.cumsum(-1) - ranked
        outside = before >= params.top_p * ranked.sum(-1, keepdim=True)
        outside[:, 0] = False
        probs = probs.masked_fill(outside.scatter(-1, order, outside), 0.0)
    return probs


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Index at which the cumulative sum passes ``uniform`` times the total."""
    cumulative = probs.cumsum(dim=-1)
    wanted = uniform[:, None] * cumulative[:, -1:]
    # right=True skips tokens of probability zero, whose step has no width.
    index = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    last = (probs.shape[-1] - 1) - (probs.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(index, last)
