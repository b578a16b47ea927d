"""SFTTrainer: conversations in, likelihood of the answers up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from nemo_rl.algorithms.sft.config import SFTMasterConfig
from nemo_rl.algorithms.sft.data import (
    perplexity,
    validation_metrics,
    validation_rows,
)
from nemo_rl.algorithms.sft.loss import NLLLossFn
from nemo_rl.data.conversations import ConversationEncoder
from nemo_rl.data.encoding import Encoder
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.trainers.base import BaseTrainer


class SFTTrainer(BaseTrainer):
    """Trains a policy on given answers (supervised fine-tuning).

    Example:
        >>> trainer = SFTTrainer.from_pretrained(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", batch_size=8, max_steps=100
        ... )
        >>> trainer.fit(dataset="conversations.jsonl")  # doctest: +SKIP
    """

    algorithm: ClassVar[str] = "sft"
    config_class: ClassVar[type[SFTMasterConfig]] = SFTMasterConfig
    encoder: ClassVar[type[Encoder]] = ConversationEncoder
    needs_reward: ClassVar[bool | None] = False
    loss_fn = NLLLossFn()

    def _train_step(self, batch: BatchedDataDict) -> dict[str, float]:
        with self.phase("training"):
            metrics = self.policy.train(batch, self.loss_fn)
        metrics["perplexity"] = perplexity(metrics["loss"])
        metrics["total_tokens"] = float(batch["input_lengths"].sum())
        return metrics

    def _evaluate(self, batch: BatchedDataDict) -> list[dict[str, Any]]:
        return validation_rows(batch, self.policy.get_logprobs(batch)["logprobs"])

    def _summarise(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        return validation_metrics(rows)
