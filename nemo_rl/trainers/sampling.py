"""SamplingTrainer: what algorithms share that learn from the policy's own responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.recorder import RolloutRecorder, rollout_rows
from nemo_rl.experience.rollout import RolloutEngine, repeat_prompts
from nemo_rl.trainers.base import BaseTrainer


class SamplingTrainer(BaseTrainer):
    """A trainer with rollouts, their record, and a validation by greedy responses.

    Attributes:
        rollout_engine: policy and environment taking turns.
        recorder: writes every response to rollouts.jsonl.
    """

    rollout_engine: RolloutEngine
    recorder: RolloutRecorder

    def _setup_rollouts(self, *, max_turns: int = 1) -> None:
        """Bring up engine and recorder; the policy is there.

        Args:
            max_turns: responses per conversation, at most.
        """
        config = self.config
        self.policy.report_to(self.logger.log_dir, config.to_dict())
        self.rollout_engine = RolloutEngine(
            self.policy,
            self.environment,
            self.tokenizer,
            seed=self.section.seed,
            max_turns=max_turns,
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
