"""The GRPO loss: clipped policy gradient with a KL penalty, on plain tensors.

Knows masks, log-probs and advantages; no model, no batch layout. The mask says which
tokens count and is never derived again here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.interfaces import LossFunctionInterface
from nemo_rl.backends.training.base import Batch, ModelOutput

_MAX_LOG_RATIO = 20.0


class GRPOLossFn(LossFunctionInterface):
    """Loss of GRPO (Shao et al. 2024, arXiv:2402.03300, equation 3), negated.

    Per token, with ratio r = exp(cur - prev) and advantage A::

        - min(r A, clip(r, 1 - low, 1 + high) A) + beta * KL(cur, ref)

    averaged over the valid tokens of the global batch, or first over each response's
    tokens and then over responses (``token_level_loss: false``). Separate clip bounds:
    DAPO (arXiv:2503.14476, equation 10). ``ratio_clip_c`` bounds the loss of a
    negative advantage: dual clip (arXiv:1912.09729, equation 5).

    A batch without ``prev_logprobs`` comes from exactly one update per rollout: the
    old policy is then the current one, r = 1, and its log-probs are the current ones
    without gradient.
    """

    def __init__(self, config: ClippedPGLossConfig) -> None:
        self.config = config

    def compute_loss(
        self, batch: Batch, model_output: ModelOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``LossFunctionInterface``; uses columns 1 .. S-1 of [b, S] tensors."""
        config = self.config
        cur = model_output.logprobs[:, 1:]
        token_mask = batch["token_mask"][:, 1:]
        sample_mask = batch["sample_mask"]
        mask = token_mask * sample_mask[:, None]
        advantages = batch["advantages"][:, 1:]
        prev = cur.detach()
        if "prev_logprobs" in batch and not config.force_on_policy_ratio:
            prev = batch["prev_logprobs"][:, 1:]
        sampled = batch.get("generation_logprobs")
        sampled = prev if sampled is None else sampled[:, 1:]

        ratio = _ratio(cur, prev, mask)
        loss = _clipped_surrogate(ratio, advantages, config)
        correction = _importance_weights(prev, sampled, mask, config)
        if config.use_importance_sampling_correction:
            loss = loss * correction
        kl = torch.zeros_like(cur)
        if config.reference_policy_kl_penalty > 0:
            reference = batch["reference_policy_logprobs"][:, 1:]
            kl = kl_divergence(_where_valid(reference - cur, mask), config)
            if config.use_on_policy_kl_approximation:
                kl = kl * _score_function_weight(cur, sampled, mask)
            loss = loss + config.reference_policy_kl_penalty * kl

        total = self._average(loss, token_mask, sample_mask, batch)
        tokens = batch["global_valid_tokens"].clamp(min=1)
        with torch.no_grad():
            metrics = _metrics(cur, prev, sampled, ratio, mask, config)
            metrics["kl"] = kl
            metrics["sampling_importance_ratio"] = correction
            shares = {
                name: _where_valid(value, mask).sum() / tokens
                for name, value in metrics.items()
            }
            # Infinite where nothing is valid: other micro-batches then decide.
            shares["ratio_max"] = torch.where(mask > 0, ratio, -torch.inf).amax()
            shares["ratio_min"] = torch.where(mask > 0, ratio, torch.inf).amin()
        return total, shares

    def _average(
        self, loss: Tensor, token_mask: Tensor, sample_mask: Tensor, batch: Batch
    ) -> Tensor:
        if self.config.token_level_loss:
            mask = token_mask * sample_mask[:, None]
            total = _where_valid(loss, mask).sum()
            return total / batch["global_valid_tokens"].clamp(min=1)
        lengths = token_mask.sum(-1).clamp(min=1)
        means = _where_valid(loss, token_mask).sum(-1) / lengths
        return (means * sample_mask).sum() / batch["global_valid_seqs"].clamp(min=1)


def _clipped_surrogate(
    ratio: Tensor, advantages: Tensor, config: ClippedPGLossConfig
) -> Tensor:
    low, high = 1 - config.ratio_clip_min, 1 + config.ratio_clip_max
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    if config.ratio_clip_c is not None:
        bound = torch.minimum(loss, -advantages * config.ratio_clip_c)
        loss = torch.where(advantages < 0, bound, loss)
    return loss


def kl_divergence(log_ratio: Tensor, config: ClippedPGLossConfig) -> Tensor:
    """Per-token estimate of KL(cur || ref), Schulman 2020, "Approximating KL".

    Args:
        log_ratio: ref - cur, any shape, fp32.
        config: estimator (k1, k2, k3) and clamps; the input is clamped before exp.
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
    if config.kl_output_clamp_value is not None:
        kl = kl.clamp(-config.kl_output_clamp_value, config.kl_output_clamp_value)
    return kl


def _where_valid(values: Tensor, mask: Tensor) -> Tensor:
    """Values where the mask is 1, else 0; what is masked may be NaN or infinite."""
    return torch.where(mask > 0, values, 0.0)


def _ratio(cur: Tensor, prev: Tensor, mask: Tensor) -> Tensor:
    """exp(cur - prev), 1 where masked.

    The exponent is clamped: beyond e^20 the ratio is clipped anyway, or, where it is
    not (a negative advantage), would make the gradient infinite.
    """
    log_ratio = _where_valid(cur - prev, mask)
    return torch.exp(log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO))


def _score_function_weight(cur: Tensor, sampled: Tensor, mask: Tensor) -> Tensor:
    """Ratio of current to sampling probability, with the gradient of the former."""
    weight = torch.exp(_where_valid(cur.detach() - sampled, mask))
    weight = weight.nan_to_num(0.0, 0.0, 0.0)
    return weight * torch.exp(_where_valid(cur - cur.detach(), mask))


def _importance_weights(
    prev: Tensor, sampled: Tensor, mask: Tensor, config: ClippedPGLossConfig
) -> Tensor:
    """exp(prev - sampled) without gradient: training over sampling probability."""
    weights = torch.exp(_where_valid(prev - sampled, mask)).detach()
    weights = weights.nan_to_num(0.0, 0.0, 0.0)
    if config.truncated_importance_sampling_ratio is not None:
        weights = weights.clamp(max=config.truncated_importance_sampling_ratio)
    return weights


def _metrics(
    cur: Tensor,
    prev: Tensor,
    sampled: Tensor,
    ratio: Tensor,
    mask: Tensor,
    config: ClippedPGLossConfig,
) -> dict[str, Tensor]:
    """Per-token values whose sums over valid tokens become means."""
    low, high = 1 - config.ratio_clip_min, 1 + config.ratio_clip_max
    error = _where_valid(prev - sampled, mask)
    return {
        "ratio": ratio,
        "clip_fraction": ((ratio < low) | (ratio > high)).float(),
        "approx_entropy": -cur,
        # Mean exp|log-prob difference| of trainer and generator: 1 when they agree.
        "token_mult_prob_error": error.abs().exp(),
        "gen_kl": error.exp() - 1 - error,
    }
