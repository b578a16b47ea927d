"""Staged: a trainer's class whose every part is a stage, and what must hold after it.

It knows `trainers.setup` by the names of its methods alone, and imports nothing heavy.
"""

from __future__ import annotations

import math
from typing import Any

from nemo_rl.config.backends import generates_apart
from nemo_rl.config.master import MasterConfig
from nemo_rl.launch.rehearsal.plan import STEPS
from nemo_rl.launch.rehearsal.stages import Stages
from nemo_rl.utils.exceptions import TrainingError
from nemo_rl.utils.imports import import_object

HERE = "nemo_rl.distributed.local:LocalCluster"
ROWS = 4
"""Rows whose own answers are scored."""
SPELLINGS = {"as they stand": "{}", "boxed": "\\boxed{{{}}}"}
KEYS = ("prompt", "answer", "row", "task_name")
"""What an environment is told of a row."""


class Staged:
    """Laid over a trainer's class: every part of its life is a stage.

    Attributes:
        stages: told of them.
        full_rows: rows of the data set per step of the recipe at its full size.
        scores: what the expected answers are worth, in words.
    """

    stages: Stages
    full_rows: int
    data: Any
    config: Any
    cluster: Any
    environment: Any
    tokenizer: Any
    scores: str

    def setup_inputs(self, *args: Any, **kwargs: Any) -> None:
        """As the trainer's."""
        with self.stages.stage("tokenizer"):
            super().setup_inputs(*args, **kwargs)  # pyrefly: ignore
        if not self.stages.inside:
            self._report_inputs()

    def _setup_data(self, *args: Any, **kwargs: Any) -> None:
        with self.stages.stage("data"):
            super()._setup_data(*args, **kwargs)  # pyrefly: ignore
            self.data.steps_per_epoch(self.full_rows)
        with self.stages.stage("environment"):
            self.scores = self._score_the_expected() if self.environment else ""

    def _setup_environment(self, *args: Any, **kwargs: Any) -> Any:
        with self.stages.stage("environment"):
            return super()._setup_environment(*args, **kwargs)  # pyrefly: ignore

    def _setup_checkpointing(self) -> None:
        with self.stages.stage("checkpoint"):
            super()._setup_checkpointing()  # pyrefly: ignore

    def _setup_logger(self) -> None:
        with self.stages.stage("logging"):
            super()._setup_logger()  # pyrefly: ignore
        if not self.stages.inside:
            also = ", TensorBoard" if self.config.logger.tensorboard_enabled else ""
            self.stages.done("logging", f"metrics.jsonl{also}")

    def _setup_cluster(self) -> None:
        with self.stages.stage("workers"):
            super()._setup_cluster()  # pyrefly: ignore
            if alone(self.config):
                # Ray starts with the first worker, so here it does not.
                self.cluster = import_object(HERE)()

    def _setup_policy(self) -> None:
        with self.stages.stage("workers"):
            super()._setup_policy()  # pyrefly: ignore
        if not self.stages.inside:
            count = self.config.cluster.world_size
            text = "in this process" if alone(self.config) else f"{count}, over Ray"
            self.stages.done("workers", text)

    def _one_step(self, batch: Any) -> Any:
        with self.stages.stage("training"):
            return super()._one_step(batch)  # pyrefly: ignore

    def _validate(self) -> Any:
        with self.stages.stage("validation"):
            return super()._validate()  # pyrefly: ignore

    def save_checkpoint(self) -> Any:
        """As the trainer's."""
        with self.stages.stage("checkpoint"):
            return super().save_checkpoint()  # pyrefly: ignore

    def _export_hf(self) -> Any:
        with self.stages.stage("export", apart=True):
            return super()._export_hf()  # pyrefly: ignore

    def _report_inputs(self) -> None:
        """Report what was brought up before any worker."""
        self.stages.done("tokenizer", words_of(self.tokenizer))
        epoch = self.data.steps_per_epoch(self.full_rows)
        steps = f"{epoch:,} step{'s' if epoch > 1 else ''} an epoch"
        text = f"{len(self.data):,} rows, {steps} at the recipe's size"
        self.stages.done("data", text)
        if self.environment is None:
            self.stages.tell({"left": "environment", "detail": "nothing is scored"})
        else:
            self.stages.done("environment", self.scores or "made, and scores")

    def _score_the_expected(self) -> str:
        """Let the environment score the rows' own answers: some should be right."""
        rows = self.data.rows(range(min(ROWS, len(self.data))))
        if not all(isinstance(answer, (str, int, float)) for answer in rows["answer"]):
            return ""
        found = {}
        for name, words in SPELLINGS.items():
            talks = [
                [*messages, {"role": "assistant", "content": words.format(answer)}]
                for messages, answer in zip(
                    rows["messages"], rows["answer"], strict=True
                )
            ]
            facts = [{key: rows[key][n] for key in KEYS} for n in range(rows.size)]
            rewards = self.environment.step(talks, facts).rewards
            found[name] = sum(float(reward) for reward in rewards) / rows.size
        text = ", ".join(f"{name} {mean:.2g}" for name, mean in found.items())
        text = f"mean reward of the expected answers: {text}"
        if max(found.values()) <= 0:
            text += ". None scores: does the reward want another form?"
        return text


def words_of(tokenizer: Any) -> str:
    """Size of a tokenizer, and whether it has a chat template."""
    template = "a" if tokenizer.chat_template else "no"
    return f"{len(tokenizer):,} tokens, {template} chat template"


def policy_here(config: MasterConfig, tokenizer: Any) -> Any:
    """A policy whose one worker is this process."""
    make = import_object("nemo_rl.models.policy.lm_policy:Policy")
    return make(
        import_object(HERE)(),
        config.policy,
        tokenizer,
        keep_reference=False,
        seed=config.algorithm_section.seed,
    )


def alone(config: MasterConfig) -> bool:
    """Whether a run needs no process beside its own, and so no Ray."""
    apart = config.samples and generates_apart(config.policy)
    return config.cluster.world_size == 1 and not apart


def check_first(result: Any) -> None:
    """Check that all steps were trained, with losses and gradients that are numbers.

    Raises:
        TrainingError: they were not.
    """
    if result.steps != STEPS:
        raise TrainingError(
            f"training ended after step {result.steps} of {STEPS}, "
            f"status {result.status!r}: the log says why."
        )
    for step in result.history:
        for key in ("loss", "grad_norm"):
            if key in step and not math.isfinite(step[key]):
                raise TrainingError(
                    f"{key}={step[key]} in step {step['step']:g}, with random weights "
                    "of common size: look at the loss and what goes into it."
                )


def check_resumed(trainer: Any, result: Any) -> None:
    """Check that a second start went on from the checkpoint.

    Raises:
        TrainingError: it began anew.
    """
    first = result.history[0]["step"] if result.history else None
    if first != STEPS + 1:
        raise TrainingError(
            f"a second start went on with step {first}, not with {STEPS + 1}: the "
            f"checkpoint in {trainer.config.checkpointing.checkpoint_dir} was not used."
        )
