"""The loss of distillation: the divergence of the policy from a teacher.

Knows log-probs and masks; no model, no data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.distillation.config import DistillationLossConfig
from nemo_rl.algorithms.interfaces import LossFunctionInterface
from nemo_rl.backends.training.base import Batch, ModelOutput
from nemo_rl.utils.exceptions import ConfigurationError

WHOLE_VOCABULARY = 2**31
"""As ``teacher_topk``: all tokens there are."""


class DistillationLossFn(LossFunctionInterface):
    """Divergence between teacher and policy on the policy's own responses.

    Per token, over the K tokens that the teacher t finds likeliest, with the policy s
    (Agarwal et al. 2023, arXiv:2306.13649, equations 2 to 4)::

        forward   sum_k t_k (ln t_k - ln s_k)
        reverse   sum_k s_k (ln s_k - ln t_k)
        mixed     w forward + (1 - w) reverse

    averaged over the valid tokens of the global batch. With the whole vocabulary these
    are the divergences themselves. With fewer tokens both distributions are those of
    the choice among the K; with ``zero_outside_topk`` only the teacher's is, so that
    what the policy gives other tokens counts against it.

    Args:
        config: the loss_fn section; its defaults when None.
        topk: K; None for the whole vocabulary.
    """

    def __init__(
        self, config: DistillationLossConfig | None = None, topk: int | None = 64
    ) -> None:
        self.config = config or DistillationLossConfig()
        self.teacher_topk = WHOLE_VOCABULARY if topk is None else topk

    def compute_loss(
        self, batch: Batch, model_output: ModelOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``LossFunctionInterface``; needs ``teacher_logprobs`` [b, S, K].

        Raises:
            ConfigurationError: the backend has no teacher.
        """
        if model_output.topk_logprobs is None:
            raise ConfigurationError(
                "the training backend compares with no teacher: train with Megatron"
            )
        mask = (batch["token_mask"] * batch["sample_mask"][:, None])[:, 1:]
        counts = mask[..., None] > 0
        policy = torch.where(counts, model_output.topk_logprobs[:, 1:], 0.0)
        teacher = torch.where(counts, batch["teacher_logprobs"][:, 1:], 0.0)
        tokens = batch["global_valid_tokens"].clamp(min=1)
        covered = torch.where(mask > 0, teacher.exp().sum(-1), 0.0).sum() / tokens

        values = divergences(policy, teacher, self.config)
        shares = {
            name: torch.where(mask > 0, value, 0.0).sum() / tokens
            for name, value in values.items()
        }
        loss = shares.pop("loss")
        metrics = {name: share.detach() for name, share in shares.items()}
        return loss, {**metrics, "teacher_topk_probability": covered}


def divergences(
    policy: Tensor, teacher: Tensor, config: DistillationLossConfig
) -> dict[str, Tensor]:
    """The loss of each token, and both divergences for the log.

    Args:
        policy: [..., K] fp32 log-probs of the policy.
        teacher: [..., K] fp32 log-probs of the teacher for the same tokens.
        config: the loss_fn section.

    Returns:
        [...] fp32 each: ``loss``, ``forward_kl``, and ``reverse_kl`` where finite.
    """
    teacher = teacher.log_softmax(-1)
    if not config.zero_outside_topk:
        policy = policy.log_softmax(-1)
    forward = (teacher.exp() * (teacher - policy)).sum(-1)
    if config.zero_outside_topk:
        return {"loss": forward, "forward_kl": forward}
    reverse = (policy.exp() * (policy - teacher)).sum(-1)
    weight = {"forward": 1.0, "reverse": 0.0}.get(
        config.kl_type, config.mixed_kl_weight
    )
    loss = weight * forward + (1 - weight) * reverse
    return {"loss": loss, "forward_kl": forward, "reverse_kl": reverse}
