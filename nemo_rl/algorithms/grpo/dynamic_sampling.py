"""Dynamic sampling: draw batches until enough prompts have differing rewards.

DAPO (arXiv:2503.14476, equation 11). Knows rollout batches and a function that makes
the next; no policy, no data set.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nemo_rl.algorithms.grpo.config import GRPOConfig
from nemo_rl.algorithms.grpo.rewards import scale_rewards
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import TrainingError

Metrics = dict[str, float]


def differing_rewards(rewards: Tensor, group: Tensor) -> Tensor:
    """[B] bool: whether the rewards of the response's prompt differ.

    Args:
        rewards: [B] fp32.
        group: [B] int64, the prompt's index.
    """
    _, index = torch.unique(group, return_inverse=True)
    count = int(index.max()) + 1
    first = rewards.new_zeros(count).scatter_(0, index, rewards)
    differs = torch.zeros(count, dtype=torch.int64)
    differs.index_add_(0, index, (rewards != first[index]).long())
    return differs[index] > 0


def sample_until_full(
    generate: Callable[[int], tuple[BatchedDataDict, Metrics]], config: GRPOConfig
) -> tuple[BatchedDataDict, Metrics]:
    """Rollouts of ``num_prompts_per_step`` prompts whose rewards differ.

    Rewards are compared as the environment gave them, scaled, without a punishment
    of length: that would tell apart responses that are all wrong. Prompts of earlier
    batches are kept; those beyond the number wanted are dropped, so that every step
    trains on samples of the present weights.

    Args:
        generate: gives the rollouts and metrics of the step's batch 0, 1, ...; groups
            of different batches have different numbers.
        config: the grpo section.

    Returns:
        The rollouts, and metrics over everything sampled, but for num_completions.

    Raises:
        TrainingError: ``dynamic_sampling_max_gen_batches`` batches were not enough.
    """
    kept: list[BatchedDataDict] = []
    seen: list[Tensor] = []
    metrics: list[Metrics] = []
    wanted, rows = config.num_prompts_per_step * config.num_generations_per_prompt, 0
    for number in range(config.dynamic_sampling_max_gen_batches):
        rollouts, found = generate(number)
        rewards = scale_rewards(rollouts["rewards"], config.reward_scaling)
        kept.append(rollouts.select(differing_rewards(rewards, rollouts["group"])))
        rows += kept[-1].size
        seen.append(rewards)
        metrics.append(found)
        if rows >= wanted:
            full = BatchedDataDict.from_batches(kept).slice(0, wanted)
            sampled = sum(len(rewards) for rewards in seen)
            counts = {
                "num_completions": float(wanted),
                "dynamic_sampling_batches": float(len(seen)),
                "dynamic_sampling_kept_fraction": rows / sampled,
                "dynamic_sampling_surplus_prompts": (rows - wanted)
                / config.num_generations_per_prompt,
            }
            return full, _combined(metrics) | counts
    raise TrainingError(_too_few(torch.cat(seen), rows, config))


def _combined(metrics: list[Metrics]) -> Metrics:
    """Extremes of extremes, means of everything else; batches are of equal size."""
    combined = {}
    for name in metrics[0]:
        values = [found[name] for found in metrics if name in found]
        if name.endswith("_min"):
            combined[name] = min(values)
        elif name.endswith("_max"):
            combined[name] = max(values)
        else:
            combined[name] = sum(values) / len(values)
    return combined


def _too_few(rewards: Tensor, rows: int, config: GRPOConfig) -> str:
    prompts = len(rewards) // config.num_generations_per_prompt
    return (
        f"dynamic sampling found {rows // config.num_generations_per_prompt} of "
        f"{config.num_prompts_per_step} prompts whose responses have differing "
        f"rewards, in {config.dynamic_sampling_max_gen_batches} batches of "
        f"{config.prompts_per_batch} prompts. Rewards of the {prompts} prompts: lowest "
        f"{float(rewards.min()):g}, mean {float(rewards.mean()):g}, highest "
        f"{float(rewards.max()):g}. Raise grpo.dynamic_sampling_max_gen_batches, "
        "grpo.batch_multiplier or grpo.num_generations_per_prompt, train on prompts of "
        "another difficulty, or set grpo.use_dynamic_sampling to false."
    )
