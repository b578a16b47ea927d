"""The GRPO loss: a policy gradient with a KL penalty, on plain tensors.

Knows masks, log-probs and advantages; no model, no batch layout. The mask says which
tokens count and is never derived again here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.kl import kl_divergence, score_function_weight
from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.ratios import (
    importance_weights,
    policy_ratio,
    where_valid,
)
from nemo_rl.algorithms.grpo.surrogates import (
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
)
from nemo_rl.algorithms.interfaces import LossFunctionInterface
from nemo_rl.backends.training.base import Batch, ModelOutput
from nemo_rl.utils.exceptions import ConfigurationError, DataError

_ALWAYS = ("token_mask", "sample_mask", "advantages")


class GRPOLossFn(LossFunctionInterface):
    """Loss of GRPO (Shao et al. 2024, arXiv:2402.03300, equation 3), negated.

    Per token, with ratio r = exp(cur - prev) and advantage A::

        - min(r A, clip(r, 1 - low, 1 + high) A) + beta * KL(cur, ref) - c * entropy

    averaged over the valid tokens of the global batch. By configuration the ratio is
    the response's (GSPO), the first term that of CISPO, and the average one of
    ``surrogates.aggregate``; docs/algorithms.md lists the keys of each.

    A batch without ``prev_logprobs`` comes from exactly one update per rollout: the
    old policy is then the current one, r = 1, and its log-probs are the current ones
    without gradient.

    Args:
        config: the loss_fn section, or a mapping of its keys; None for the defaults,
            which want ``reference_policy_logprobs`` in the batch.

    Example:
        >>> GRPOLossFn({"ratio_clip_max": 0.28}).config.ratio_clip_max
        0.28
    """

    def __init__(
        self, config: ClippedPGLossConfig | Mapping[str, Any] | None = None
    ) -> None:
        self.config = ClippedPGLossConfig.from_mapping(config or {})
        self.needs_entropy = self.config.needs_entropy

    def compute_loss(
        self, batch: Batch, model_output: ModelOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``LossFunctionInterface``; uses columns 1 .. S-1 of [b, S] tensors.

        Raises:
            DataError: the batch lacks a column that the configured loss needs.
            ConfigurationError: the engine gives no entropy, which it needs.
        """
        config = self.config
        self._check_columns(batch)
        cur = model_output.logprobs[:, 1:]
        mask = (batch["token_mask"] * batch["sample_mask"][:, None])[:, 1:]
        advantages = batch["advantages"][:, 1:]
        prev = cur.detach()
        if "prev_logprobs" in batch and not config.force_on_policy_ratio:
            prev = batch["prev_logprobs"][:, 1:]
        sampled = batch.get("generation_logprobs")
        sampled = prev if sampled is None else sampled[:, 1:]

        ratio = policy_ratio(cur, prev, mask, config)
        if config.use_cispo:
            loss = cispo_surrogate(cur, ratio, advantages, mask, config)
        else:
            loss = clipped_surrogate(ratio, advantages, config)
        correction = importance_weights(prev, sampled, mask, config)
        if config.use_importance_sampling_correction:
            loss = loss * correction
        metrics = _metrics(cur.detach(), prev, sampled, ratio.detach(), mask, config)
        metrics["sampling_importance_ratio"] = correction
        if config.truncated_importance_sampling_type in ("icepop", "seq-mask-tis"):
            metrics["importance_masked_fraction"] = (correction == 0).float()
        metrics["kl"] = torch.zeros_like(cur)
        if config.kl_in_loss:
            metrics["kl"] = kl = self._kl(cur, sampled, mask, batch)
            loss = loss + config.reference_policy_kl_penalty * kl
        if self.needs_entropy:
            metrics["entropy"] = entropy = _entropy(model_output)
            loss = loss - config.entropy_coef * entropy
        return aggregate(loss, batch, config), _shares(metrics, mask, batch)

    def _kl(self, cur: Tensor, sampled: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        reference = batch["reference_policy_logprobs"][:, 1:]
        weight = None
        if self.config.use_on_policy_kl_approximation:
            weight = score_function_weight(cur, sampled, mask)
        log_ratio = where_valid(reference - cur, mask)
        return kl_divergence(log_ratio, self.config, weight=weight)

    def _check_columns(self, batch: Batch) -> None:
        config = self.config
        needed = {name: "every loss" for name in _ALWAYS}
        if config.kl_in_loss:
            needed["reference_policy_logprobs"] = (
                "reference_policy_kl_penalty="
                f"{config.reference_policy_kl_penalty:g}; "
                "policy.get_reference_logprobs(batch) gives it"
            )
        for name in (
            "use_importance_sampling_correction",
            "use_on_policy_kl_approximation",
        ):
            if config[name]:
                needed["generation_logprobs"] = f"{name}=true"
        missing = [
            f"{name} (for {use})" for name, use in needed.items() if name not in batch
        ]
        if missing:
            raise DataError(f"the batch lacks columns: {', '.join(missing)}.")


def _entropy(output: ModelOutput) -> Tensor:
    if output.entropy is None:
        raise ConfigurationError(
            "the training backend gives no entropy: set loss_fn.entropy_coef to 0 and "
            "loss_fn.log_entropy to false, or train with Megatron."
        )
    return output.entropy[:, 1:]


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
    error = where_valid(prev - sampled, mask)
    return {
        "ratio": ratio,
        "clip_fraction": ((ratio < low) | (ratio > high)).float(),
        "approx_entropy": -cur,
        # Mean exp|log-prob difference| of trainer and generator: 1 when they agree.
        "token_mult_prob_error": error.abs().exp(),
        # Of the generator from the trainer, back, and of both from their mean.
        "gen_kl": _k3(error),
        "policy_kl": _k3(-error),
        "js_divergence": (_k3(-_to_mean(error)) + _k3(-_to_mean(-error))) / 2,
    }


def _k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimate of a divergence; >= 0, 0 where the probabilities agree."""
    return log_ratio.exp() - 1 - log_ratio


def _to_mean(log_ratio: Tensor) -> Tensor:
    """ln(m / p) for ln(q / p), m the mean of p and q."""
    return torch.nn.functional.softplus(log_ratio) - log(2)


@torch.no_grad()
def _shares(
    metrics: dict[str, Tensor], mask: Tensor, batch: Batch
) -> dict[str, Tensor]:
    tokens = batch["global_valid_tokens"].clamp(min=1)
    shares = {
        name: where_valid(value, mask).sum() / tokens for name, value in metrics.items()
    }
    # Infinite where nothing is valid: other micro-batches then decide.
    ratio = metrics["ratio"]
    shares["ratio_max"] = torch.where(mask > 0, ratio, -torch.inf).amax()
    shares["ratio_min"] = torch.where(mask > 0, ratio, torch.inf).amin()
    return shares
