"""Rollouts to a training batch: masks, rewards, advantages; no policy."""

from __future__ import annotations

from nemo_rl.algorithms.grpo.advantages import token_advantages
from nemo_rl.algorithms.grpo.config import GRPOConfig
from nemo_rl.algorithms.grpo.kl import kl_divergence
from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.ratios import where_valid
from nemo_rl.algorithms.grpo.rewards import scale_rewards, shape_rewards
from nemo_rl.distributed.batched_data_dict import BatchedDataDict


def build_train_batch(rollouts: BatchedDataDict, config: GRPOConfig) -> BatchedDataDict:
    """Keep what training needs of a rollout batch, without advantages.

    Args:
        rollouts: rollout batch of B rows (``data/interfaces.py``).
        config: the grpo section.

    Returns:
        Tensors alone: input_ids, input_lengths, token_mask, generation_logprobs and
        sample_mask.
    """
    sample_mask = rollouts["sample_mask"]
    if config.overlong_filtering:
        sample_mask = sample_mask * (~rollouts["truncated"]).float()
    names = ("input_ids", "input_lengths", "token_mask", "generation_logprobs")
    columns = {name: rollouts[name] for name in names}
    return BatchedDataDict({**columns, "sample_mask": sample_mask})


def with_versions(batch: BatchedDataDict, rollouts: BatchedDataDict) -> BatchedDataDict:
    """A train batch with the versions of the weights that sampled each token.

    Args:
        batch: what ``build_train_batch`` made of the rollouts.
        rollouts: with ``token_versions`` [B, S], where the generator tells them.
    """
    if "token_versions" not in rollouts:
        return batch
    return BatchedDataDict({**batch, "token_versions": rollouts["token_versions"]})


def add_advantages(
    batch: BatchedDataDict,
    rollouts: BatchedDataDict,
    config: GRPOConfig,
    loss: ClippedPGLossConfig,
) -> dict[str, float]:
    """Add the column ``advantages`` [B, S] to a train batch.

    Args:
        batch: what ``build_train_batch`` made of the rollouts; with
            ``use_kl_in_reward`` also prev_logprobs and reference_policy_logprobs.
        rollouts: rewards, group and truncated of the same rows.
        config: the grpo section.
        loss: the loss_fn section: the penalty in the reward.

    Returns:
        shaped_reward, the mean reward that advantages are made of, where it is not
        the environment's; kl_in_reward, the mean divergence of a token, where it is
        subtracted.
    """
    metrics, mask = {}, batch["token_mask"]
    rewards = shape_rewards(
        scale_rewards(rollouts["rewards"], config.reward_scaling),
        config.reward_shaping,
        lengths=mask.sum(-1),
        truncated=rollouts["truncated"],
    )
    if config.reward_scaling.enabled or config.reward_shaping.enabled:
        metrics["shaped_reward"] = float(rewards.mean())
    kl = None
    if loss.use_kl_in_reward:
        log_ratio = batch["reference_policy_logprobs"] - batch["prev_logprobs"]
        per_token = where_valid(kl_divergence(where_valid(log_ratio, mask), loss), mask)
        metrics["kl_in_reward"] = float(per_token.sum() / mask.sum().clamp(min=1))
        kl = loss.reference_policy_kl_penalty * per_token
    batch["advantages"] = token_advantages(
        rewards,
        rollouts["group"],
        token_mask=mask,
        sample_mask=batch["sample_mask"],
        config=config,
        kl=kl,
    )
    return metrics


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
