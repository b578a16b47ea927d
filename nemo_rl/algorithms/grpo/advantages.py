"""Rewards to advantages: the estimators that grpo.adv_estimator names.

Pure functions of tensors; a response is known by its row, a prompt by its group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.config import GRPOConfig


def token_advantages(
    rewards: Tensor,
    group: Tensor,
    *,
    token_mask: Tensor,
    sample_mask: Tensor,
    config: GRPOConfig,
    kl: Tensor | None = None,
) -> Tensor:
    """The advantage of every token by the configured estimator.

    A divergence in the reward is subtracted where the estimator's paper has it: grpo
    and rloo compare whole responses, so a response's reward loses the sum over its
    tokens (RLOO, arXiv:2402.14740, section 3); with reinforce_plus_plus a token's
    advantage loses the sum from that token on.

    Args:
        rewards: [B] fp32, scaled and shaped.
        group: [B] int64, the prompt's index in the step's batch.
        token_mask: [B, S] tokens of the responses.
        sample_mask: [B] 0 for responses that are left out of the loss.
        config: the grpo section.
        kl: [B, S] penalty times divergence of each token; None for none.

    Returns:
        [B, S] fp32, 0 where ``token_mask`` is 0.
    """
    penalty = torch.zeros_like(token_mask)
    if kl is not None:
        penalty = torch.where(token_mask > 0, kl, 0.0)
    if config.adv_estimator.name == "reinforce_plus_plus":
        return reinforce_plus_plus(
            rewards,
            group,
            token_mask=token_mask,
            sample_mask=sample_mask,
            kl=penalty,
            minus_baseline=config.adv_estimator.minus_baseline,
        )
    rewards = rewards - penalty.sum(-1)
    if config.adv_estimator.name == "rloo":
        advantages = rloo(rewards, group)
    else:
        advantages = group_advantages(
            rewards,
            group,
            leave_one_out=config.use_leave_one_out_baseline,
            normalize=config.normalize_rewards,
        )
    return advantages[:, None] * token_mask


def group_advantages(
    rewards: Tensor, group: Tensor, *, leave_one_out: bool, normalize: bool
) -> Tensor:
    """Advantage of each response within its prompt's group (GRPO, arXiv:2402.03300).

    The baseline is the mean reward of the group, or of its other members
    (leave-one-out, Kool et al. 2019). With ``normalize`` the difference is divided by
    the group's unbiased standard deviation over all its members, also under
    leave-one-out: the deviation of the others alone is always 0 for two members.
    Where all rewards of a group are equal the advantage is 0 undivided. Without
    ``normalize`` these are the advantages of Dr. GRPO (arXiv:2503.20783).

    Args:
        rewards: [B] fp32.
        group: [B] int64, the prompt's index in the step's batch. Equal prompts at two
            indices are two groups.
        leave_one_out: exclude a response from its own baseline.
        normalize: divide by the standard deviation.

    Returns:
        [B] fp32. A group of one has advantage 0.
    """
    _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
    rewards, count = rewards.double(), size.double()
    centred = _centred(rewards, index, count)
    others = (count - 1).clamp(min=1)
    advantages = centred
    if leave_one_out:
        # r - (total - r) / (n - 1)  =  (r - mean) * n / (n - 1)
        advantages = centred * (count / others)[index]
    if normalize:
        squares = torch.zeros_like(count).index_add_(0, index, centred.square())
        std = (squares / others).sqrt()[index]
        advantages = torch.where(std > 0, advantages / std, 0.0)
    return torch.where(size[index] > 1, advantages, 0.0).float()


def _centred(rewards: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """[B] fp64 rewards minus their group's mean; exactly 0 where all are equal."""
    first = torch.zeros_like(count).scatter_(0, index, rewards)
    # Differences to a member of the group: equal rewards leave no rounding error.
    offset = rewards - first[index]
    mean = torch.zeros_like(count).index_add_(0, index, offset) / count
    return offset - mean[index]


def rloo(rewards: Tensor, group: Tensor) -> Tensor:
    """A response's reward minus the mean reward of the prompt's other responses.

    REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740).

    Args:
        rewards: [B] fp32.
        group: [B] int64.

    Returns:
        [B] fp32. A group of one has advantage 0.
    """
    return group_advantages(rewards, group, leave_one_out=True, normalize=False)


def reinforce_plus_plus(
    rewards: Tensor,
    group: Tensor,
    *,
    token_mask: Tensor,
    sample_mask: Tensor,
    kl: Tensor,
    minus_baseline: bool,
) -> Tensor:
    """Advantages normalised over all valid tokens of the step.

    REINFORCE++ (Hu et al. 2025, arXiv:2501.03262): the advantage of token t is the
    response's reward minus the sum of ``kl`` from t to the end. With
    ``minus_baseline`` the mean reward of the prompt is subtracted first
    (REINFORCE++-baseline). Then mean and standard deviation over the tokens of the
    step's batch are taken out of it.

    Args:
        rewards: [B] fp32.
        group: [B] int64.
        token_mask: [B, S].
        sample_mask: [B]; responses left out count in their prompt's baseline, not in
            the normalisation.
        kl: [B, S] penalty times divergence, 0 where ``token_mask`` is 0.
        minus_baseline: subtract the prompt's mean.

    Returns:
        [B, S] fp32, 0 where ``token_mask`` is 0, and everywhere if all are equal.
    """
    if minus_baseline:
        _, index, size = torch.unique(group, return_inverse=True, return_counts=True)
        rewards = _centred(rewards.double(), index, size.double())
    to_go = kl.double().flip(-1).cumsum(-1).flip(-1)
    advantages = rewards.double()[:, None] - to_go
    normal = _normalised(advantages, token_mask * sample_mask[:, None])
    return torch.where(token_mask > 0, normal, 0.0).float()


def _normalised(values: Tensor, mask: Tensor) -> Tensor:
    """Values with mean 0 and deviation 1 where the mask is 1; 0 if all are equal."""
    valid = values[mask > 0]
    if len(valid) == 0:
        return torch.zeros_like(values)
    # fp64 sums of fp32 rewards are exact: equal ones leave no rounding error.
    std = valid.std(correction=0)
    return torch.where(std > 0, (values - valid.mean()) / std, 0.0)
