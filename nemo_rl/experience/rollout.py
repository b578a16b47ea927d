"""RolloutEngine: prompts in, scored completions out.

Knows a policy that generates and an environment that scores; nothing about advantages
or updates. Generated tokens are kept as they were sampled and never tokenised again.
"""

from __future__ import annotations

from typing import Any

import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.interfaces import EnvironmentInterface
from nemo_rl.metrics.rollout import rollout_metrics
from nemo_rl.utils.exceptions import RewardError
from nemo_rl.utils.seeding import derive_seed


class RolloutEngine:
    """Generates one turn per row and lets the environment score it.

    Args:
        policy: has ``generate(batch, greedy)``.
        environment: scores conversations.
        tokenizer: turns responses into text; its end token is left out of the text.
        seed: with a step and a row's position it decides the row's samples.
    """

    def __init__(
        self,
        policy: Any,
        environment: EnvironmentInterface,
        tokenizer: Any,
        *,
        seed: int = 0,
    ) -> None:
        self.policy, self.environment = policy, environment
        self.tokenizer, self.seed = tokenizer, seed

    def run(
        self, batch: BatchedDataDict, *, step: int = 0, greedy: bool = False
    ) -> tuple[BatchedDataDict, dict[str, float]]:
        """Generate and score.

        Args:
            batch: prompt batch of B rows with ``group`` [B] (see ``repeat_prompts``).
            step: the training step, part of every row's sampling seed.
            greedy: take the likeliest token.

        Returns:
            A rollout batch (``data/interfaces.py``) and metrics over its rows.

        Raises:
            RewardError: the environment failed or returned unusable rewards.
        """
        rollouts = self._generate(batch, step, greedy)
        rollouts["rewards"] = self._score(rollouts)
        lengths = rollouts["input_lengths"] - rollouts["prompt_lengths"]
        metrics = rollout_metrics(
            rollouts["rewards"],
            response_lengths=lengths,
            truncated=rollouts["truncated"],
            group=rollouts["group"],
        )
        rollouts, extra = self.environment.global_post_process_and_metrics(rollouts)
        return rollouts, {**extra, **metrics}

    def _generate(
        self, batch: BatchedDataDict, step: int, greedy: bool
    ) -> BatchedDataDict:
        seeds = [
            derive_seed(self.seed, "rollout", step, row) for row in range(batch.size)
        ]
        prompts = BatchedDataDict(
            {
                "input_ids": batch["input_ids"],
                "input_lengths": batch["input_lengths"],
                "sampling_seed": torch.tensor(seeds),
            }
        )
        output = self.policy.generate(prompts, greedy)
        starts, ends = batch["input_lengths"], output["unpadded_sequence_lengths"]
        columns = torch.arange(output["output_ids"].shape[1])[None]
        mask = (columns >= starts[:, None]) & (columns < ends[:, None])
        kept = {
            key: value
            for key, value in batch.items()
            if key not in ("input_ids", "input_lengths")
        }
        return BatchedDataDict(
            {
                **kept,
                "input_ids": output["output_ids"],
                "input_lengths": ends,
                "prompt_lengths": starts,
                "token_mask": mask.float(),
                "generation_logprobs": output["logprobs"] * mask,
                "response": self._texts(output["output_ids"], starts, ends),
                "truncated": output["truncated"],
                "sample_mask": torch.ones(batch.size),
            }
        )

    def _texts(
        self, ids: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor
    ) -> list[str]:
        spans = zip(ids.tolist(), starts.tolist(), ends.tolist(), strict=True)
        responses = [row[start:end] for row, start, end in spans]
        return self.tokenizer.batch_decode(responses, skip_special_tokens=True)

    def _score(self, rollouts: BatchedDataDict) -> torch.Tensor:
        conversations = [
            [*messages, {"role": "assistant", "content": response}]
            for messages, response in zip(
                rollouts["messages"], rollouts["response"], strict=True
            )
        ]
        truncated = rollouts["truncated"].tolist()
        metadata = [
            {
                "prompt": rollouts["prompt"][row],
                "answer": rollouts["answer"][row],
                "row": rollouts["row"][row],
                "truncated": truncated[row],
            }
            for row in range(rollouts.size)
        ]
        returned = self.environment.step(conversations, metadata)
        rewards = torch.as_tensor(returned.rewards, dtype=torch.float32)
        if rewards.shape != (rollouts.size,):
            raise RewardError(
                f"{type(self.environment).__name__}.step returned rewards of shape "
                f"{list(rewards.shape)} for {rollouts.size} conversations"
            )
        return rewards


def repeat_prompts(batch: BatchedDataDict, times: int) -> BatchedDataDict:
    """Each prompt ``times`` in a row, with ``group`` = its index in the batch."""
    group = torch.arange(batch.size)
    return BatchedDataDict({**batch, "group": group}).repeat_interleave(times)
