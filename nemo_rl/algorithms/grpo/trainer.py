"""GRPOTrainer: rollout, advantages, log-probs, update. The step reads as the algorithm.

Group Relative Policy Optimization: Shao et al. 2024, arXiv:2402.03300, algorithm 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.algorithms.grpo.data import build_train_batch, mask_sampler_mismatch
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.recorder import RolloutRecorder, rollout_rows
from nemo_rl.experience.rollout import RolloutEngine, repeat_prompts
from nemo_rl.trainers.base import BaseTrainer


class GRPOTrainer(BaseTrainer):
    """Trains a policy on its own scored completions.

    Example:
        >>> trainer = GRPOTrainer.from_pretrained(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", num_prompts_per_step=4, max_steps=40
        ... )
        >>> trainer.fit(dataset="arithmetic")  # doctest: +SKIP
    """

    algorithm: ClassVar[str] = "grpo"
    config_class: ClassVar[type[GRPOMasterConfig]] = GRPOMasterConfig
    steps_key: ClassVar[str] = "num_prompts_per_step"
    needs_reward: ClassVar[bool] = True

    def _train_step(self, batch: BatchedDataDict) -> dict[str, float]:
        step = self.state.step + 1
        batch = repeat_prompts(batch, self.section.num_generations_per_prompt)
        with self.phase("generation"):
            rollouts, metrics = self.rollout_engine.run(batch, step=step)
        train_batch = build_train_batch(rollouts, self.section)
        with self.phase("logprobs"):
            metrics |= self._add_logprobs(train_batch)
        with self.phase("training"):
            metrics |= self.policy.train(train_batch, self.loss_fn)
        with self.phase("refit"):
            self.policy.refit()
        self.recorder.record(step, rollout_rows(rollouts))
        metrics["total_tokens"] = float(rollouts["input_lengths"].sum())
        return metrics

    def _add_logprobs(self, batch: BatchedDataDict) -> dict[str, float]:
        """Add the old policy's and the reference's log-probs where the loss needs them.

        With exactly one update per rollout the old policy is the one being updated:
        its log-probs are those of the update's own forward pass.
        """
        threshold = self.section.seq_logprob_error_threshold
        metrics = {}
        if self._updates_per_step > 1 or threshold is not None:
            scores = self.policy.get_logprobs(batch)
            batch["prev_logprobs"] = scores["logprobs"]
            kept, dropped = mask_sampler_mismatch(batch, threshold)
            batch["sample_mask"] = kept["sample_mask"]
            metrics["mismatch_masked_fraction"] = dropped
        if self.config.loss_fn.reference_policy_kl_penalty > 0:
            batch |= self.policy.get_reference_logprobs(batch)
        return metrics

    def _setup_policy(self) -> None:
        config = self.config
        self._updates_per_step = (
            config.samples_per_step // config.policy.train_global_batch_size
        )
        self.loss_fn = GRPOLossFn(config.loss_fn)
        self.policy = self._make_policy(
            keep_reference=config.loss_fn.reference_policy_kl_penalty > 0
        )
        self.rollout_engine = RolloutEngine(
            self.policy,
            self.environment,
            self.tokenizer,
            seed=self.section.seed,
            max_turns=self.section.max_rollout_turns,
            max_total_length=config.policy.max_total_sequence_length,
        )
        self.recorder = RolloutRecorder(
            self.logger.log_dir / "rollouts.jsonl",
            resume_step=self.state.step or None,
            enabled=config.logger.save_rollouts,
        )
        self._teardown_steps.append(self.recorder.close)

    def _evaluate(self, batch: BatchedDataDict) -> list[dict[str, Any]]:
        """One greedy completion per prompt; rows for the validation."""
        rollouts, _ = self.rollout_engine.run(
            repeat_prompts(batch, 1), step=self.state.step, greedy=True
        )
        rows = rollout_rows(rollouts)
        self.recorder.record(self.state.step, rows, split="val")
        for row, messages in zip(rows, rollouts["messages"], strict=True):
            # Of several turns the ids hold what the environment said, too.
            sampled = row.get("token_mask") or [1] * len(row["response_ids"])
            row["response_length"] = sum(sampled)
            row["question"] = messages[-1]["content"]
        return rows

    def _rollouts_path(self) -> Path | None:
        return self.recorder.path if self.config.logger.save_rollouts else None
