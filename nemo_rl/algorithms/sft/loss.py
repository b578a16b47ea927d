"""The loss of supervised fine-tuning: negative log-likelihood of the answers.

Knows log-probs and masks; no model, no data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.interfaces import LossFunctionInterface
from nemo_rl.backends.training.base import Batch, ModelOutput


class NLLLossFn(LossFunctionInterface):
    """Mean of -log p(token | tokens before it) over the tokens that are learned.

    Maximum likelihood, as in Ouyang et al. 2022 (arXiv:2203.02155, section 3.5), with
    the mean taken over all tokens of the global batch: a long answer weighs more than
    a short one, and neither micro-batches nor layouts change the result.
    """

    def compute_loss(
        self, batch: Batch, model_output: ModelOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``LossFunctionInterface``; uses columns 1 .. S-1 of [b, S] tensors."""
        rows, _ = row_likelihoods(batch, model_output.logprobs)
        total = -(rows * batch["sample_mask"]).sum()
        return total / batch["global_valid_tokens"].clamp(min=1), {}


def row_likelihoods(batch: Batch, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Summed log-probability and number of the learned tokens of each row.

    Args:
        batch: with ``token_mask`` [b, S].
        logprobs: [b, S] fp32, column t for token t.

    Returns:
        [b] fp32 each.
    """
    mask = batch["token_mask"][:, 1:]
    kept = torch.where(mask > 0, logprobs[:, 1:], 0.0)
    return kept.sum(-1), mask.sum(-1)
