"""How far policies are apart: trainer and generator, new and old, policy and reference.

Pure functions of log-probabilities [B,S] with index t for token t, so that column 0
has none; the mask is given, never derived. B batch, S sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

# exp of a log-ratio beyond this says only "infinitely wrong" and overflows float32.
_LARGEST_LOG_RATIO = 20.0


def combined_mask(token_mask: Tensor, sample_mask: Tensor | None = None) -> Tensor:
    """Tokens that count, [B,S-1] float32: column 0, which nothing predicts, is off.

    Args:
        token_mask: [B,S], 1 on response tokens.
        sample_mask: [B], 0 for completions that do not count.
    """
    mask = token_mask[:, 1:].float()
    return mask if sample_mask is None else mask * sample_mask.float().unsqueeze(-1)


def masked_average(values: Tensor, mask: Tensor) -> float:
    """Mean over the mask; 0 where the mask is empty. Masked values may be anything."""
    kept = torch.where(mask > 0, values.float(), torch.zeros_like(values.float()))
    total = mask.sum()
    return float((kept * mask).sum() / total) if total > 0 else 0.0


def logprob_metrics(
    prev_logprobs: Tensor,
    generation_logprobs: Tensor,
    token_mask: Tensor,
    sample_mask: Tensor | None = None,
) -> dict[str, float]:
    """Compare the trainer's log-probs of sampled tokens with the generator's.

    Both come from the same weights, so every difference is numerical: the generator
    runs other kernels, another precision, or older weights than it should.

    Args:
        prev_logprobs: [B,S] of the trainer, before the update.
        generation_logprobs: [B,S] reported while sampling.
        token_mask: [B,S], 1 on response tokens.
        sample_mask: [B], 0 for completions that do not count.

    Returns:
        token_mult_prob_error: mean of exp(abs(difference)); 1 is perfect, above 1.05
        is suspicious. token_mult_prob_error_max: the largest. gen_kl_error: k3
        estimate of KL(generator, trainer). policy_kl_error: the same the other way,
        weighted to the trainer. js_divergence_error: Jensen-Shannon, from the two.
        sampling_importance_ratio: mean of p_trainer / p_generator.
    """
    mask = combined_mask(token_mask, sample_mask)
    trainer, generator = (
        prev_logprobs[:, 1:].float(),
        generation_logprobs[:, 1:].float(),
    )
    log_ratio = _log_ratio(trainer, generator, mask)
    ratio = log_ratio.exp()
    error = log_ratio.abs().exp()
    largest = float(error[mask > 0].max()) if bool((mask > 0).any()) else 1.0
    # Tokens were sampled by the generator: an expectation under the trainer weighs
    # each by the ratio.
    reverse = ratio * log_ratio - (ratio - 1.0)
    # log of the mixture m = (p + g) / 2 relative to the generator.
    log_mixture = torch.logaddexp(log_ratio, torch.zeros_like(log_ratio)) - _LOG_2
    js = 0.5 * (ratio * (log_ratio - log_mixture) - log_mixture)
    return {
        "token_mult_prob_error": masked_average(error, mask),
        "token_mult_prob_error_max": largest,
        "gen_kl_error": masked_average(ratio - 1.0 - log_ratio, mask),
        "policy_kl_error": masked_average(reverse, mask),
        "js_divergence_error": masked_average(js, mask),
        "sampling_importance_ratio": masked_average(ratio, mask),
    }


def update_metrics(
    curr_logprobs: Tensor,
    prev_logprobs: Tensor,
    token_mask: Tensor,
    sample_mask: Tensor | None = None,
    *,
    ratio_clip_min: float,
    ratio_clip_max: float,
) -> dict[str, float]:
    """Compare the policy that is being updated with the one that sampled.

    Args:
        curr_logprobs: [B,S] of the present policy.
        prev_logprobs: [B,S] of the policy at the start of the step.
        token_mask: [B,S], 1 on response tokens.
        sample_mask: [B], 0 for completions that do not count.
        ratio_clip_min: lower clip range, as in the loss.
        ratio_clip_max: upper clip range, as in the loss.

    Returns:
        probs_ratio, probs_ratio_max, probs_ratio_min; clip_fraction, the share of
        tokens outside [1 - min, 1 + max]; approx_kl, k3 of KL(previous, present).
    """
    mask = combined_mask(token_mask, sample_mask)
    log_ratio = _log_ratio(curr_logprobs[:, 1:], prev_logprobs[:, 1:], mask)
    ratio = log_ratio.exp()
    outside = (ratio < 1.0 - ratio_clip_min) | (ratio > 1.0 + ratio_clip_max)
    kept = ratio[mask > 0]
    return {
        "probs_ratio": masked_average(ratio, mask),
        "probs_ratio_max": float(kept.max()) if kept.numel() else 1.0,
        "probs_ratio_min": float(kept.min()) if kept.numel() else 1.0,
        "clip_fraction": masked_average(outside.float(), mask),
        "approx_kl": masked_average(ratio - 1.0 - log_ratio, mask),
    }


def kl_to_reference(
    curr_logprobs: Tensor,
    reference_logprobs: Tensor,
    token_mask: Tensor,
    sample_mask: Tensor | None = None,
) -> float:
    """Mean k3 estimate per token of KL(policy, reference).

    Schulman 2020, "Approximating KL Divergence": exp(r) - 1 - r with r = reference -
    policy, for tokens sampled by the policy.

    Args:
        curr_logprobs: [B,S] of the policy.
        reference_logprobs: [B,S] of the reference policy.
        token_mask: [B,S], 1 on response tokens.
        sample_mask: [B], 0 for completions that do not count.
    """
    mask = combined_mask(token_mask, sample_mask)
    log_ratio = _log_ratio(reference_logprobs[:, 1:], curr_logprobs[:, 1:], mask)
    return masked_average(log_ratio.exp() - 1.0 - log_ratio, mask)


_LOG_2 = 0.6931471805599453


def _log_ratio(numerator: Tensor, denominator: Tensor, mask: Tensor) -> Tensor:
    """Difference of log-probs, 0 off the mask, clamped so that exp stays finite."""
    difference = numerator.float() - denominator.float()
    difference = torch.where(mask > 0, difference, torch.zeros_like(difference))
    return difference.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
