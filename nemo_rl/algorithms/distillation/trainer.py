"""DistillationTrainer: the policy answers, the teacher corrects every token.

On-policy distillation: Agarwal et al. 2023, arXiv:2306.13649, algorithm 1.
"""

from __future__ import annotations

from typing import Any, ClassVar

from nemo_rl.algorithms.distillation.config import DistillationMasterConfig
from nemo_rl.algorithms.distillation.loss import DistillationLossFn
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.recorder import rollout_rows
from nemo_rl.experience.rollout import repeat_prompts
from nemo_rl.trainers.sampling import SamplingTrainer
from nemo_rl.utils.exceptions import ConfigurationError

_LEARNED = ("input_ids", "input_lengths", "token_mask", "sample_mask")


def _no_reward(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0] * len(responses)


class DistillationTrainer(SamplingTrainer):
    """Trains a policy to give its own responses the probabilities a teacher gives them.

    A reward is not needed; where there is one, it is logged and validated by.

    Example:
        >>> trainer = DistillationTrainer.from_pretrained(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", teacher={"model_name": "larger"}, max_steps=100
        ... )
        >>> trainer.fit(dataset="arithmetic")  # doctest: +SKIP
    """

    algorithm: ClassVar[str] = "distillation"
    config_class: ClassVar[type[DistillationMasterConfig]] = DistillationMasterConfig
    steps_key: ClassVar[str] = "num_prompts_per_step"

    def _train_step(self, batch: BatchedDataDict) -> dict[str, float]:
        step = self.state.step + 1
        batch = repeat_prompts(batch, self.section.num_generations_per_prompt)
        with self.phase("generation"):
            rollouts, metrics = self.rollout_engine.run(batch, step=step)
        train_batch = BatchedDataDict({name: rollouts[name] for name in _LEARNED})
        with self.phase("training"):
            metrics |= self.policy.train(train_batch, self.loss_fn)
        with self.phase("refit"):
            metrics |= self.policy.refit() or {}
        self.recorder.record(step, rollout_rows(rollouts))
        metrics["total_tokens"] = float(rollouts["input_lengths"].sum())
        return metrics if self._scored else _without_rewards(metrics)

    def _setup_environment(self, reward_fn: Any, *, needed: bool = True) -> None:
        env = self.config.env
        given = reward_fn or env.reward_fn or env.chosen
        self._scored = bool(given or self.data.default_environment)
        if not self._scored and self.data.has_validation:
            raise ConfigurationError(
                "validation of a distillation needs something that scores answers: "
                "set env.reward_fn or env.name, or leave the validation data out."
            )
        chosen = reward_fn if self._scored else _no_reward
        super()._setup_environment(chosen, needed=needed)

    def _setup_policy(self) -> None:
        config = self.config
        self.loss_fn = DistillationLossFn(config.loss_fn, self.section.topk_logits_k)
        self.policy = self._make_policy(teacher=config.teacher.model_name)
        self._setup_rollouts()


def _without_rewards(metrics: dict[str, float]) -> dict[str, float]:
    """Nothing was scored: rewards of 0 would look like bad answers."""
    return {name: value for name, value in metrics.items() if "reward" not in name}
