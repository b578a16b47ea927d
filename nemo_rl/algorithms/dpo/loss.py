"""The DPO loss: a better answer is to gain on a worse one, relative to a reference.

Knows log-probs and masks; no model, no data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nemo_rl.algorithms.dpo.config import DPOConfig
from nemo_rl.algorithms.interfaces import LossFunctionInterface
from nemo_rl.backends.training.base import Batch, ModelOutput
from nemo_rl.metrics.pairs import pair_shares


class DPOLossFn(LossFunctionInterface):
    """Loss of DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    Per pair, with the implicit reward r = beta (log pi - log pi_ref) of an answer::

        - (1 - s) log sigmoid(r_chosen - r_rejected)
        -      s  log sigmoid(r_rejected - r_chosen)

    where s is ``label_smoothing``, the share of labels that are taken to be wrong
    (Mitchell 2023, "A note on DPO with noisy preferences", equation 3). With
    ``preference_average_log_probs`` a log-probability is divided by its answer's
    length. ``sft_loss_weight`` adds the chosen answer's negative log-likelihood (the
    RPO term of Pang et al. 2024, arXiv:2404.19733, equation 2). All terms are means
    over the pairs of the global batch.

    Rows 2 i and 2 i + 1 of a batch are the chosen and the rejected answer of a pair.

    Args:
        config: the dpo section; its defaults when None.
    """

    rows_per_sample = 2

    def __init__(self, config: DPOConfig | None = None) -> None:
        self.config = config or DPOConfig()

    def compute_loss(
        self, batch: Batch, model_output: ModelOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``LossFunctionInterface``; needs ``reference_policy_logprobs`` [b, S]."""
        values = pair_values(batch, model_output.logprobs, self.config)
        return pair_shares(values, batch)


def pair_values(batch: Batch, logprobs: Tensor, config: DPOConfig) -> dict[str, Tensor]:
    """Loss and metrics of each pair.

    Args:
        batch: ``token_mask`` and ``reference_policy_logprobs`` [2 P, S].
        logprobs: [2 P, S] fp32 of the policy, column t for token t.
        config: the dpo section.

    Returns:
        [P] fp32 each: ``loss``, ``preference_loss``, ``sft_loss``, ``accuracy``,
        ``rewards_chosen``, ``rewards_rejected``, ``rewards_margin``.
    """
    mask = batch["token_mask"][:, 1:]
    lengths = mask.sum(-1).clamp(min=1)
    policy = _sums(logprobs, mask)
    rewards = policy - _sums(batch["reference_policy_logprobs"], mask)
    if config.preference_average_log_probs:
        rewards = rewards / lengths
    chosen, rejected = (config.beta * rewards).view(-1, 2).unbind(-1)
    margin = chosen - rejected
    smoothing = config.label_smoothing
    preference = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
    likelihood = policy / lengths if config.sft_average_log_probs else policy
    sft = -likelihood.view(-1, 2)[:, 0]
    loss = config.preference_loss_weight * preference
    if config.sft_loss_weight > 0:
        loss = loss + config.sft_loss_weight * sft
    return {
        "loss": loss,
        "preference_loss": preference,
        "sft_loss": sft,
        "accuracy": (margin > 0).float(),
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "rewards_margin": margin,
    }


def _sums(logprobs: Tensor, mask: Tensor) -> Tensor:
    """[2 P] log-probability of each answer."""
    return torch.where(mask > 0, logprobs[:, 1:], 0.0).sum(-1)
