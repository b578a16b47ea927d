"""GRPOTrainer: rollout, advantages, log-probs, update. The step reads as the algorithm.

Group Relative Policy Optimization: Shao et al. 2024, arXiv:2402.03300, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from nemo_rl.algorithms.grpo.ahead import let_run_ahead, options
from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.algorithms.grpo.data import (
    add_advantages,
    build_train_batch,
    mask_sampler_mismatch,
    with_versions,
)
from nemo_rl.algorithms.grpo.dynamic_sampling import sample_until_full
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.ahead import AheadSource
from nemo_rl.experience.recorder import rollout_rows
from nemo_rl.experience.rollout import repeat_prompts
from nemo_rl.experience.source import DirectSource, RolloutSource
from nemo_rl.experience.tail import Limits
from nemo_rl.trainers.sampling import SamplingTrainer
from nemo_rl.trainers.validation import ValidationResult
from nemo_rl.utils.seeding import derive_seed


class GRPOTrainer(SamplingTrainer):
    """Trains a policy on its own scored completions.

    Example:
        >>> trainer = GRPOTrainer.from_pretrained(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", num_prompts_per_step=4, max_steps=40
        ... )
        >>> trainer.fit(dataset="arithmetic")  # doctest: +SKIP
    """

    algorithm: ClassVar[str] = "grpo"
    config_class: ClassVar[type[GRPOMasterConfig]] = GRPOMasterConfig
    steps_key: ClassVar[str] = "prompts_per_batch"
    needs_reward: ClassVar[bool] = True

    def _train_step(self, batch: BatchedDataDict) -> dict[str, float]:
        step = self.state.step + 1
        rollouts, train_batch, metrics = self._rollouts(batch, step)
        with self.phase("logprobs"):
            metrics |= self._add_logprobs(train_batch)
        loss = self.config.loss_fn
        metrics |= add_advantages(train_batch, rollouts, self.section, loss)
        with self.phase("training"):
            metrics |= self.policy.train(train_batch, self.loss_fn)
        with self.phase("refit"):
            metrics |= self.source.refit()
        metrics["total_tokens"] = float(rollouts["input_lengths"].sum())
        return metrics

    def _rollouts(
        self, prompts: BatchedDataDict, step: int
    ) -> tuple[BatchedDataDict, BatchedDataDict, dict[str, float]]:
        """The step's rollouts, and what training needs of them.

        Where the generator turns out to have had other weights than the trainer, it has
        them now, and the prompts are answered once more.
        """
        for sampled in (self.source.next, self.source.again):
            with self.phase(self.source.phase):
                rollouts, metrics = sampled(prompts, step)
            train_batch = build_train_batch(rollouts, self.section)
            outcome = self.policy.check_rollout(with_versions(train_batch, rollouts))
            if outcome is not None:
                metrics |= outcome.metrics
            if outcome is None or outcome.usable:
                break
        return rollouts, train_batch, metrics

    def _sample(
        self, batch: BatchedDataDict, step: int
    ) -> tuple[BatchedDataDict, dict[str, float]]:
        """Rollouts of the step's prompts, or of as many as dynamic sampling needs."""

        def generate(number: int) -> tuple[BatchedDataDict, dict[str, float]]:
            prompts = batch if number == 0 else next(self._batches)
            repeated = repeat_prompts(prompts, self.section.num_generations_per_prompt)
            # Rows of different batches of one step draw from different seeds.
            place = step if number == 0 else derive_seed(step, "batch", number)
            rollouts, metrics = self.rollout_engine.run(repeated, step=place)
            rollouts["group"] = rollouts["group"] + number * prompts.size
            self.recorder.record(step, rollout_rows(rollouts))
            return rollouts, metrics

        if self.section.use_dynamic_sampling:
            return sample_until_full(generate, self.section)
        return generate(0)

    def _add_logprobs(self, batch: BatchedDataDict) -> dict[str, float]:
        """Add the old policy's and the reference's log-probs where they are needed.

        With exactly one update per rollout the old policy is the one being updated:
        its log-probs are those of the update's own forward pass. A reward with a
        divergence in it needs them before that.
        """
        threshold = self.section.seq_logprob_error_threshold
        loss = self.config.loss_fn
        metrics = {}
        early = threshold is not None or loss.use_kl_in_reward
        if self._updates_per_step > 1 or early:
            scores = self.policy.get_logprobs(batch)
            batch["prev_logprobs"] = scores["logprobs"]
            kept, dropped = mask_sampler_mismatch(batch, threshold)
            batch["sample_mask"] = kept["sample_mask"]
            metrics["mismatch_masked_fraction"] = dropped
        if loss.reference_policy_kl_penalty > 0:
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
        self._setup_rollouts(max_turns=self.section.max_rollout_turns)
        self.source = self._make_source()

    def _make_source(self) -> RolloutSource:
        """Sample when a step asks, or ahead of it."""
        section, ahead = self.section, self.section.async_grpo
        if not ahead.samples_ahead:
            return DirectSource(
                self._sample,
                data=self.data,
                prompts_per_batch=section.prompts_per_batch,
                policy=self.policy,
            )
        let_run_ahead(self.policy, ahead)
        policy = self.config.policy
        source = AheadSource(
            self.rollout_engine,
            options(ahead),
            data=self.data,
            prompts=section.num_prompts_per_step,
            generations=section.num_generations_per_prompt,
            limits=Limits(
                policy.generation.max_new_tokens, policy.max_total_sequence_length
            ),
            record=lambda step, rollouts: self.recorder.record(
                step, rollout_rows(rollouts)
            ),
        )
        # Validation shares the generator with what is sampled ahead.
        self.rollout_engine = source.engine
        return source

    def _open_batches(self) -> Iterator[BatchedDataDict]:
        saved = self._resumed.path if self._resumed is not None else None
        return self.source.open(self.state.step, self.total_steps, saved)

    def _data_state(self) -> dict[str, Any]:
        return self.source.data_state()

    def _run_validation(self) -> ValidationResult:
        with self.source.exclusively():
            return super()._run_validation()

    def _save_more(self, path: Path) -> None:
        self.source.save(path)

    def _teardown(self) -> None:
        # Before the policy's workers end, which the threads of the source use.
        if (source := getattr(self, "source", None)) is not None:
            source.close()
        super()._teardown()
