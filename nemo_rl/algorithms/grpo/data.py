"""Rewards to advantages to a training batch; knows tensors, no policy."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.config import GRPOConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def group_advantages(
    rewards: Tensor, group: Tensor, *, leave_one_out: bool, normalize: bool
) -> Tensor:
    """Advantage of each response within its prompt's group.

    The baseline is the mean reward of the group, or of its other members
    (leave-one-out, Kool et al. 2019). With ``normalize`` the difference is divided by
    the group's unbiased standard deviation over all its members, also under
    leave-one-out: the deviation of the others alone is always 0 for two members.
    Where all rewards of a group are equal the advantage is 0 undivided.

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


def build_train_batch(rollouts: BatchedDataDict, config: GRPOConfig) -> BatchedDataDict:
    """Keep what training needs of a rollout batch and add advantages.

    Args:
        rollouts: rollout batch of B rows (``data/interfaces.py``).
        config: the grpo section.

    Returns:
        Tensors alone: input_ids, input_lengths, token_mask, generation_logprobs,
        sample_mask and advantages [B, S].
    """
    advantages = group_advantages(
        rollouts["rewards"],
        rollouts["group"],
        leave_one_out=config.use_leave_one_out_baseline,
        normalize=config.normalize_rewards,
    )
    sample_mask = rollouts["sample_mask"]
    if config.overlong_filtering:
        sample_mask = sample_mask * (~rollouts["truncated"]).float()
    return BatchedDataDict(
        {
            "input_ids": rollouts["input_ids"],
            "input_lengths": rollouts["input_lengths"],
            "token_mask": rollouts["token_mask"],
            "generation_logprobs": rollouts["generation_logprobs"],
            "sample_mask": sample_mask,
            "advantages": advantages[:, None] * rollouts["token_mask"],
        }
    )


def mask_sampler_mismatch(
    batch: BatchedDataDict, threshold: float | None
) -> tuple[BatchedDataDict, float]:
    """Leave out responses on which trainer and generator disagree too much.

    Args:
        batch: train batch with ``prev_logprobs``.
        threshold: largest mean exp|prev - generation| of a kept response; None keeps
            all.

    Returns:
        The batch and the fraction of responses left out.
    """
    if threshold is None:
        return batch, 0.0
    mask = batch["token_mask"]
    error = ((batch["prev_logprobs"] - batch["generation_logprobs"]) * mask).abs().exp()
    mean = (error * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    keep = (mean <= threshold).float()
    kept = BatchedDataDict({**batch, "sample_mask": batch["sample_mask"] * keep})
    return kept, 1.0 - float(keep.mean())
