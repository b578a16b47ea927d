"""What a token contributes to the loss, and how contributions become one number.

Pure functions of [b, S] tensors; the ratios come from ``ratios.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.ratios import where_valid
from nemo_rl.backends.training.base import Batch


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, config: ClippedPGLossConfig
) -> Tensor:
    """``- min(r A, clip(r, 1 - low, 1 + high) A)`` per token.

    PPO (arXiv:1707.06347, equation 7); two bounds: DAPO (arXiv:2503.14476, equation
    10); ``ratio_clip_c`` bounds the loss of a negative advantage: dual clip
    (arXiv:1912.09729, equation 5).
    """
    low, high = 1 - config.ratio_clip_min, 1 + config.ratio_clip_max
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    if config.ratio_clip_c is not None:
        bound = torch.minimum(loss, -advantages * config.ratio_clip_c)
        loss = torch.where(advantages < 0, bound, loss)
    return loss


def cispo_surrogate(
    cur: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    config: ClippedPGLossConfig,
) -> Tensor:
    """``- sg(clip(r, 1 - low, 1 + high)) A log pi`` per token.

    CISPO (arXiv:2506.13585, equations 4 and 5). The ratio is a weight without
    gradient: a clipped token still has a gradient, only a bounded one. The paper sets
    no lower bound: ``ratio_clip_min`` 1.
    """
    weight = ratio.detach().clamp(1 - config.ratio_clip_min, 1 + config.ratio_clip_max)
    return -weight * advantages * where_valid(cur, mask)


def aggregate(loss: Tensor, batch: Batch, config: ClippedPGLossConfig) -> Tensor:
    """This micro-batch's share of the mean over the global batch.

    - ``token_level_loss``: sum over tokens / valid tokens of the global batch
      (DAPO, arXiv:2503.14476, equation 12);
    - without it: mean over responses of the mean over their tokens (GRPO,
      arXiv:2402.03300, equation 3);
    - without it and with ``constant_response_length`` L: mean over responses of the
      sum over their tokens / L (Dr. GRPO, arXiv:2503.20783, section 3.2), so that a
      token weighs the same in a short and in a long response.

    Args:
        loss: [b, S - 1], of tokens 1 .. S - 1.
        batch: masks, ``global_valid_tokens`` and ``global_valid_seqs``.
        config: which of them.
    """
    token_mask, sample_mask = batch["token_mask"][:, 1:], batch["sample_mask"]
    if config.token_level_loss:
        total = where_valid(loss, token_mask * sample_mask[:, None]).sum()
        return total / batch["global_valid_tokens"].clamp(min=1)
    lengths = token_mask.sum(-1).clamp(min=1)
    if config.constant_response_length is not None:
        lengths = torch.full_like(lengths, config.constant_response_length)
    rows = where_valid(loss, token_mask).sum(-1) / lengths
    return (rows * sample_mask).sum() / batch["global_valid_seqs"].clamp(min=1)
