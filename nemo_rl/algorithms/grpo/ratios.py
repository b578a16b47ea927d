"""Ratios of probabilities: of the policy after to before updates, trainer to generator.

Pure functions of [b, S] log-probs and the mask of valid tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig

_MAX_LOG_RATIO = 20.0


def where_valid(values: Tensor, mask: Tensor) -> Tensor:
    """Values where the mask is 1, else 0; what is masked may be NaN or infinite."""
    return torch.where(mask > 0, values, 0.0)


def policy_ratio(
    cur: Tensor, prev: Tensor, mask: Tensor, config: ClippedPGLossConfig
) -> Tensor:
    """Ratio of the policy that is updated to the one that began the step.

    Args:
        cur: [b, S] log-probs with gradient.
        prev: [b, S] log-probs before the updates.
        mask: [b, S] valid tokens.
        config: per token, or per response (``sequence_level_importance_ratios``).

    Returns:
        [b, S], 1 where masked.
    """
    if config.sequence_level_importance_ratios:
        return sequence_ratio(cur, prev, mask)
    return token_ratio(cur, prev, mask)


def token_ratio(cur: Tensor, prev: Tensor, mask: Tensor) -> Tensor:
    """exp(cur - prev), 1 where masked (PPO, arXiv:1707.06347, section 3).

    The exponent is clamped: beyond e^20 the ratio is clipped anyway, or, where it is
    not (a negative advantage), would make the gradient infinite.
    """
    return _exp(where_valid(cur - prev, mask))


def sequence_ratio(cur: Tensor, prev: Tensor, mask: Tensor) -> Tensor:
    """exp of a response's mean log-ratio on each of its tokens, 1 where masked.

    GSPO (arXiv:2507.18071, equation 7) with the gradient of GSPO-token (equation 14):
    every token has the response's ratio s and the gradient s * grad log pi of itself.
    Where all tokens of a response have one advantage, value and gradient of the mean
    over tokens are those of GSPO.
    """
    log_ratio = where_valid(cur - prev, mask).detach()
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    mean = log_ratio.sum(-1, keepdim=True) / count
    own = where_valid(cur, mask)
    return _exp(torch.where(mask > 0, mean + own - own.detach(), 0.0))


def _exp(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def importance_weights(
    prev: Tensor, sampled: Tensor, mask: Tensor, config: ClippedPGLossConfig
) -> Tensor:
    """Weights that correct for a generator whose probabilities are not the trainer's.

    A token's weight is exp(prev - sampled); with sequence-level ratios it is that of
    its whole response, the product over its tokens. What is outside the bounds
    ``truncated_importance_sampling_ratio_min`` and ``.._ratio``

    - is clamped ("tis": truncated importance sampling, Ionides 2008),
    - is left out ("icepop": IcePop, arXiv:2510.18855), or
    - is kept unless the geometric mean over the response is outside, which leaves the
      whole response out ("seq-mask-tis").

    What is left out has weight 0 and stays in the denominator of the loss.

    Args:
        prev: [b, S] log-probs of the trainer before the updates.
        sampled: [b, S] log-probs of the generator.
        mask: [b, S] valid tokens.
        config: which of them, and the bounds.

    Returns:
        [b, S] without gradient; 1 where masked, 0 where a weight is not finite.
    """
    log_weights = where_valid((prev - sampled).detach(), mask)
    total = log_weights.sum(-1, keepdim=True)
    weights = torch.exp(log_weights)
    if config.sequence_level_importance_ratios:
        weights = torch.where(mask > 0, torch.exp(total), 1.0)
    low = config.truncated_importance_sampling_ratio_min or 0.0
    high = config.truncated_importance_sampling_ratio
    high = float("inf") if high is None else high
    finite = torch.isfinite(weights)
    kind = config.truncated_importance_sampling_type
    if kind == "tis":
        weights = weights.clamp(low, high)
    elif kind == "icepop":
        weights = torch.where((weights >= low) & (weights <= high), weights, 0.0)
    elif kind == "seq-mask-tis":
        mean = torch.exp(total / mask.sum(-1, keepdim=True).clamp(min=1))
        weights = torch.where((mean >= low) & (mean <= high), weights, 0.0)
    return torch.where(mask > 0, torch.where(finite, weights, 0.0), 1.0)
