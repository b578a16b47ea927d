"""DPOTrainer: pairs of answers in, the better one's advantage up.

Direct Preference Optimization: Rafailov et al. 2023, arXiv:2305.18290.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from nemo_rl.algorithms.dpo.config import DPOMasterConfig
from nemo_rl.algorithms.dpo.loss import DPOLossFn, pair_values
from nemo_rl.data.encoding import Encoder
from nemo_rl.data.preferences import PreferenceEncoder
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.metrics.pairs import pair_rows, row_means
from nemo_rl.trainers.base import BaseTrainer


class DPOTrainer(BaseTrainer):
    """Trains a policy on pairs of a better and a worse answer.

    Example:
        >>> trainer = DPOTrainer.from_pretrained(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", batch_size=8, max_steps=100, beta=0.1
        ... )
        >>> trainer.fit(dataset="preferences.jsonl")  # doctest: +SKIP
    """

    algorithm: ClassVar[str] = "dpo"
    config_class: ClassVar[type[DPOMasterConfig]] = DPOMasterConfig
    encoder: ClassVar[type[Encoder]] = PreferenceEncoder
    needs_reward: ClassVar[bool | None] = False

    def _train_step(self, batch: BatchedDataDict) -> dict[str, float]:
        with self.phase("logprobs"):
            batch |= self.policy.get_reference_logprobs(batch)
        with self.phase("training"):
            metrics = self.policy.train(batch, self.loss_fn)
        metrics["num_samples"] = batch.size // 2
        metrics["total_tokens"] = float(batch["input_lengths"].sum())
        return metrics

    def _setup_policy(self) -> None:
        self.policy = self._make_policy(keep_reference=True)
        self.loss_fn = DPOLossFn(self.section)

    def _evaluate(self, batch: BatchedDataDict) -> list[dict[str, Any]]:
        batch |= self.policy.get_reference_logprobs(batch)
        logprobs = self.policy.get_logprobs(batch)["logprobs"]
        values = pair_values(batch, logprobs, self.section)
        return pair_rows(values, batch["sample_mask"])

    def _summarise(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        return row_means(rows)
