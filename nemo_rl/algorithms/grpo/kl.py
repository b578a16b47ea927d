"""Per-token divergence from the reference policy, for the loss and for the reward.

Knows tensors and the estimator's settings; where the result goes is the caller's
matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.ratios import where_valid


def kl_divergence(
    log_ratio: Tensor, config: ClippedPGLossConfig, *, weight: Tensor | None = None
) -> Tensor:
    """Per-token estimate of KL(cur || ref), Schulman 2020, "Approximating KL".

    The log-ratio is clamped before it is exponentiated, the result after it is
    weighted: a clamped token has no gradient, whatever its weight.

    Args:
        log_ratio: ref - cur, any shape, fp32.
        config: estimator (k1, k2, k3) and clamps.
        weight: factor of each token, of the same shape; None: 1.
    """
    if config.kl_input_clamp_value is not None:
        bound = config.kl_input_clamp_value
        log_ratio = log_ratio.clamp(-bound, bound)
    if config.reference_policy_kl_type == "k1":
        kl = -log_ratio
    elif config.reference_policy_kl_type == "k2":
        kl = log_ratio.square() / 2
    else:
        kl = log_ratio.exp() - 1 - log_ratio
    if weight is not None:
        kl = kl * weight
    if config.kl_output_clamp_value is not None:
        kl = kl.clamp(-config.kl_output_clamp_value, config.kl_output_clamp_value)
    return kl


def score_function_weight(cur: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
    """Ratio of current to sampling probability, with the gradient of the former.

    As a factor of the divergence it corrects for tokens that another policy drew, and
    adds the gradient through the probability of drawing them (arXiv:2506.09477). A
    weight that is not finite counts as 0.

    Args:
        cur: [b, S] log-probs with gradient.
        sampled: [b, S] log-probs of the generator.
        mask: [b, S] valid tokens.
    """
    weight = torch.exp(where_valid(cur.detach() - sampled, mask))
    weight = weight.nan_to_num(0.0, 0.0, 0.0)
    return weight * torch.exp(where_valid(cur - cur.detach(), mask))
