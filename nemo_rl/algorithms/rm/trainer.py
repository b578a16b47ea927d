"""RMTrainer: pairs of answers in, a score for answers out.

Stiennon et al. 2020, "Learning to summarize from human feedback" (arXiv:2009.01325).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

from nemo_rl.algorithms.rm.config import RMMasterConfig
from nemo_rl.algorithms.rm.loss import BradleyTerryLossFn, pair_values
from nemo_rl.data.encoding import Encoder
from nemo_rl.data.preferences import PreferenceEncoder
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.metrics.pairs import pair_rows, row_means
from nemo_rl.trainers.base import BaseTrainer

log = logging.getLogger(__name__)


class RMTrainer(BaseTrainer):
    """Trains a reward model on pairs of a better and a worse answer.

    The model is a language model's with one score in place of the output layer, read at
    the last token of a conversation. What is exported is a Hugging Face folder for
    ``AutoModelForSequenceClassification``.

    Example:
        >>> trainer = RMTrainer.from_pretrained(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", batch_size=8, max_steps=100
        ... )
        >>> trainer.fit(dataset="preferences.jsonl")  # doctest: +SKIP
    """

    algorithm: ClassVar[str] = "rm"
    config_class: ClassVar[type[RMMasterConfig]] = RMMasterConfig
    encoder: ClassVar[type[Encoder]] = PreferenceEncoder
    needs_reward: ClassVar[bool | None] = False

    def _train_step(self, batch: BatchedDataDict) -> dict[str, float]:
        with self.phase("training"):
            metrics = self.policy.train(batch, self.loss_fn)
        metrics["num_samples"] = batch.size // 2
        metrics["total_tokens"] = float(batch["input_lengths"].sum())
        return metrics

    def _setup_policy(self) -> None:
        tokenizer = self.tokenizer
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            log.warning(
                "The tokenizer pads with its end token. transformers reads the score "
                "before the first padding token at the end: a text that ends with that "
                "token is scored one token earlier there than here."
            )
        pad = {"hf_config_overrides": {"pad_token_id": tokenizer.pad_token_id}}
        self.config = self.config.merged({"policy": pad})
        self.policy = self._make_policy()
        self.loss_fn = BradleyTerryLossFn(self.section)

    def _evaluate(self, batch: BatchedDataDict) -> list[dict[str, Any]]:
        scores = self.policy.get_scores(batch)["scores"]
        return pair_rows(pair_values(scores, self.section), batch["sample_mask"])

    def _summarise(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        return row_means(rows)
