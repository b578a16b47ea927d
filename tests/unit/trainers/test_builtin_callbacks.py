"""The callbacks that come along, in the loop of a real trainer with a toy policy."""

from __future__ import annotations

import io
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_rl.trainers import (
    CheckpointCallback,
    EarlyStoppingCallback,
    LambdaCallback,
    LoggingCallback,
    ProgressCallback,
)
from nemo_rl.trainers.base import BaseTrainer
from nemo_rl.trainers.callbacks import Callback, CallbackList
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tokenizers import character_tokenizer

ROWS = [{"prompt": f"{n} + 1 ="} for n in range(8)]


class SavingPolicy(OneWordPolicy):
    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        (path / "weights").write_text("w")

    def load_checkpoint(self, path: Path) -> None:
        assert (path / "weights").exists()


class ToyTrainer(BaseTrainer):
    """Its losses and accuracies are given; a step takes a minute of a false clock."""

    def _train_step(self, batch: Any) -> dict[str, float]:
        Clock.now += 60.0
        return {"loss": LOSSES[self.state.step % len(LOSSES)]}

    def _evaluate(self, batch: Any) -> list[dict[str, Any]]:
        accuracy = ACCURACIES[self.state.step % len(ACCURACIES)]
        row = {"prompt": "p", "response": "r", "reward": accuracy}
        return [{**row, "response_length": 1, "truncated": False}] * batch.size


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return Clock.now


LOSSES = [5.0, 4.0, 4.0, 3.99, 3.98, 3.97, 3.96, 3.95]
ACCURACIES = [0.1, 0.2, 0.5, 0.5, 0.4, math.nan, 0.3, 0.9]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    character_tokenizer().save_pretrained(folder)
    models.tiny_config("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def fit(model, tmp_path):
    """Train the toy with callbacks; the trainer, the result and the steps saved."""

    def run(*callbacks: Callback, steps: int = 8, **sections: Any):
        config = {
            "policy": {"model_name": str(model)},
            "toy": {
                "max_num_steps": steps,
                "batch_size": 1,
                "val_period": 1,
                "max_val_samples": 1,
            },
            "logger": {
                "log_dir": str(tmp_path / "logs"),
                "console": "off",
                "tensorboard_enabled": False,
            },
            "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
            "checkpointing": {
                "checkpoint_dir": str(tmp_path / "checkpoints"),
                "save_period": 100,
                "keep_top_k": None,
                "export_hf": False,
            },
            **sections,
        }
        trainer = ToyTrainer(config, policy=SavingPolicy([7]))
        saved: list[str] = []
        note = LambdaCallback(on_checkpoint=lambda _, path: saved.append(path.name))
        result = trainer.fit(ROWS, None, [*callbacks, note], val_dataset=ROWS)
        return trainer, result, [int(name.removeprefix("step_")) for name in saved]

    return run


def test_early_stopping_waits_for_its_patience(fit) -> None:
    # 0.2, 0.5, then 0.5, 0.4 and nan fail; the third failure is one too many.
    _, result, saved = fit(EarlyStoppingCallback(patience=2))
    assert (result.status, result.steps, saved) == ("stopped", 5, [5])


def test_early_stopping_on_the_loss_of_every_step(fit) -> None:
    stop = EarlyStoppingCallback("train:loss", patience=1, min_delta=0.1, mode="min")
    _, result, _ = fit(stop)
    # 5, 4; then 4 and 3.99 are not better than 4 by more than 0.1.
    assert (result.status, result.steps) == ("stopped", 4)
    _, result, _ = fit(EarlyStoppingCallback("train:loss", mode="min"))
    assert result.status == "completed"


def test_early_stopping_goes_on_counting_after_a_resume(fit) -> None:
    fit(steps=4)
    _, result, _ = fit(EarlyStoppingCallback(patience=2))
    assert (result.status, result.steps) == ("stopped", 5)


def test_a_metric_that_is_not_there_is_named(fit) -> None:
    with pytest.raises(ConfigurationError, match="'acuracy'. Did you mean accuracy"):
        fit(EarlyStoppingCallback("acuracy"))


def test_checkpoints_by_steps_end_with_the_last(fit) -> None:
    assert fit(CheckpointCallback(every_steps=3))[2] == [3, 6, 8]


def test_checkpoints_by_time(fit) -> None:
    clock = CheckpointCallback(every_minutes=2, clock=Clock())
    assert fit(clock, steps=5)[2] == [2, 4, 5]


def test_checkpoints_of_the_best(fit) -> None:
    best = CheckpointCallback(metric="accuracy")
    assert fit(best, steps=6)[2] == [1, 2, 6]
    # Resumed: 0.9 at step 7 is better than the 0.5 of before.
    assert fit(CheckpointCallback(metric="accuracy"), steps=8)[2] == [7, 8]


def test_a_checkpoint_of_a_callback_is_resumed_like_any_other(fit, tmp_path) -> None:
    """Saved between steps, at an epoch's end: the epoch is counted once."""
    toy = {"batch_size": 4, "max_num_epochs": 4, "val_period": 0}
    at_two = CheckpointCallback(every_steps=2)
    fit(at_two, toy={**toy, "max_num_steps": 3})
    shutil.rmtree(tmp_path / "checkpoints" / "step_000003")
    epochs: list[int] = []
    note = LambdaCallback(on_epoch_begin=lambda _, epoch: epochs.append(epoch))
    trainer, result, _ = fit(note, toy={**toy, "max_num_steps": 4})
    assert (epochs, trainer.state.epoch, result.steps) == ([1], 2, 4)


def test_logging(fit, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="nemo_rl"):
        fit(LoggingCallback(every=4, metrics=["loss", "nothing"]), steps=5)
    lines = [text for text in caplog.messages if text.startswith(("step", "valid"))]
    assert "step 4: loss=3.990" in lines and len(lines) == 1 + 5
    assert lines[0].startswith("validation at step 1: accuracy=0.2000")


def test_progress(fit) -> None:
    stream = io.StringIO()
    fit(ProgressCallback(every=4, stream=stream, clock=Clock()), steps=6)
    assert stream.getvalue().splitlines() == [
        "[#############-------] 4/6  loss 3.990  elapsed 4:00, left 2:00",
        "[####################] 6/6  loss 3.970  elapsed 6:00, left 0:00",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CheckpointCallback(), "saves nothing"),
        (lambda: CheckpointCallback(every_steps=-1), "every_steps=-1 must be more"),
        (lambda: CheckpointCallback(metric="a", mode="best"), "mode='best' must be"),
        (lambda: EarlyStoppingCallback(patience=-1), "must not be negative"),
        (lambda: EarlyStoppingCallback("test:a"), "begin with 'train:' or 'val:'"),
        (lambda: LoggingCallback(every=0), "every=0 must be more than 0"),
        (lambda: LambdaCallback(on_steps_end=print), "Did you mean on_step_end"),
    ],
)
def test_arguments_that_cannot_be(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_they_pass_the_check_of_every_callback() -> None:
    assert len(CallbackList([EarlyStoppingCallback(), LambdaCallback()])) == 2


def test_hooks_come_in_the_documented_order(fit) -> None:
    calls: list[str] = []

    def note(name: str):
        return lambda *args: calls.append(name)

    every = LambdaCallback(**{name: note(name) for name in ORDER})
    toy = {"batch_size": 8, "max_num_steps": 1, "val_period": 1, "val_at_start": True}
    fit(every, toy=toy)
    assert calls == [
        "on_train_begin",
        "on_validation_end",
        "on_epoch_begin",
        "on_step_begin",
        "on_step_end",
        "on_epoch_end",
        "on_validation_end",
        "on_checkpoint",
        "on_train_end",
    ]
    text = Callback.__doc__ or ""
    positions = [text.index(name) for name in dict.fromkeys(calls)]
    assert positions == sorted(positions)


ORDER = [name for name in vars(Callback) if name.startswith("on_")]
