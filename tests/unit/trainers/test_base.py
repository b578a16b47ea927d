"""BaseTrainer: an algorithm of one's own is a class with one method.

The loop around real policies, saving and resuming are tested in tests/functional.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_rl.api import functional
from nemo_rl.api.train import train
from nemo_rl.trainers.base import BaseTrainer
from nemo_rl.trainers.builtin_callbacks import LambdaCallback
from nemo_rl.trainers.callbacks import Callback
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tokenizers import character_tokenizer

ROWS = [{"prompt": f"{n} + 1 ="} for n in range(8)]
QUIET = {"console": "off", "tensorboard_enabled": False}


class SavedPolicy(OneWordPolicy):
    """Its checkpoint is a word."""

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        (path / "word").write_text("7")

    def load_checkpoint(self, path: Path) -> None:
        assert (path / "word").read_text() == "7"


class MyAlgoTrainer(BaseTrainer):
    """As in the guide to algorithms of one's own."""

    @classmethod
    def _build_config_from_pretrained(cls, model: str, **kwargs: Any) -> Any:
        config = super()._build_config_from_pretrained(model, **kwargs)
        config["myalgo"] = {"my_param": kwargs.pop("my_param", 1.0)}
        return config

    def __init__(self, config: Any) -> None:
        super().__init__(config, policy=SavedPolicy([7]))
        self._myalgo_config = config.get("myalgo", {})
        self.seen: list[str] = []

    def _train_step(self, batch: Any) -> dict[str, float]:
        self.seen += batch["prompt"]
        return {"loss": self._compute_loss(batch, None)}

    def _compute_loss(self, batch: Any, outputs: Any) -> float:
        return 2.0 * self._myalgo_config["my_param"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    character_tokenizer().save_pretrained(folder)
    models.tiny_config("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    """Sections that keep a run small and quiet."""
    return {
        "logger": {**QUIET, "log_dir": str(tmp_path / "logs")},
        "checkpointing": {"enabled": False},
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
    }


def test_algorithm_of_ones_own(folder, sections) -> None:
    trainer = MyAlgoTrainer.from_pretrained(
        str(folder), my_param=3.0, batch_size=2, max_steps=3, **sections
    )
    assert trainer.algorithm == "myalgo"
    assert trainer.config["myalgo"]["my_param"] == 3.0
    result = trainer.fit(dataset=ROWS)
    assert [row["loss"] for row in result.history] == [6.0, 6.0, 6.0]
    assert len(set(trainer.seen)) == 6


def test_registered_it_is_found_by_name(folder, sections, monkeypatch) -> None:
    registry = {**functional._ALGORITHM_REGISTRY, "myalgo": MyAlgoTrainer}
    monkeypatch.setattr(functional, "_ALGORITHM_REGISTRY", registry)
    result = train(
        str(folder), ROWS, algorithm="myalgo", my_param=0.5, max_steps=1, batch_size=4,
        **sections,
    )  # fmt: skip
    assert (result.steps, result.metrics["loss"]) == (1, 1.0)
    recipe = {
        "policy": {"model_name": str(folder)},
        "myalgo": {"my_param": 2.0, "max_num_steps": 1, "batch_size": 8},
        **sections,
    }
    trainer = functional.create_trainer(recipe)
    assert isinstance(trainer, MyAlgoTrainer)
    assert trainer.fit(dataset=ROWS).metrics["loss"] == 4.0


def test_without_a_step_it_says_what_is_missing(folder, sections) -> None:
    class Unfinished(BaseTrainer):
        pass

    config = {"policy": {"model_name": str(folder)}, **sections}
    trainer = Unfinished(config, policy=OneWordPolicy([7]))
    with pytest.raises(NotImplementedError, match="Unfinished defines no _train_step"):
        trainer.fit(dataset=[{"prompt": "a"}] * 32)


def test_empty_model_name_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="policy.model_name"):
        MyAlgoTrainer({"policy": {"model_name": ""}})


def test_stops_at_the_time_limit(folder, sections) -> None:
    trainer = MyAlgoTrainer.from_pretrained(
        str(folder), batch_size=2, max_time_s=1e-9, **sections
    )
    result = trainer.fit(dataset=ROWS)
    assert (result.status, result.steps) == ("time_limit", 0)


class Asking(Callback):
    """Touches a file of the run folder in a step."""

    def __init__(self, at: dict[int, str]) -> None:
        self.at = at

    def on_step_end(self, trainer, step, metrics):
        if step in self.at:
            (trainer.run_dir / self.at[step]).touch()


def saving(tmp_path: Path) -> dict[str, Any]:
    """Only the last step saves of itself."""
    folder = {"checkpoint_dir": str(tmp_path / "checkpoints"), "save_period": 100}
    return {"enabled": True, "export_hf": False, "metric_name": None, **folder}


def test_files_save_and_stop(folder, sections, tmp_path, capsys) -> None:
    sections["checkpointing"] = saving(tmp_path)
    sections["logger"]["console"] = "plain"
    trainer = MyAlgoTrainer.from_pretrained(str(folder), batch_size=2, **sections)
    trainer.run_dir = tmp_path
    asking = Asking({1: "SAVE", 3: "STOP"})
    result = trainer.fit(dataset=ROWS, callbacks=[asking])
    assert (result.status, result.steps) == ("stopped", 3)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert saved == ["step_000001", "step_000003"]
    assert not (tmp_path / "SAVE").exists() and (tmp_path / "STOPPED").exists()
    text = capsys.readouterr().out
    assert "file SAVE: saving step 1, then going on" in text
    assert "stopping: file STOP, after step 3" in text


def test_what_does_not_fit_is_not_begun(
    folder, sections, tmp_path, monkeypatch, capsys
) -> None:
    end = tmp_path / "end"
    monkeypatch.setenv("NEMO_RL_END_FILE", str(end))
    sections["checkpointing"] = {**saving(tmp_path), "end_margin_s": 100}
    sections["logger"]["console"] = "plain"

    def fit(left: float, *callbacks: Callback) -> Any:
        end.write_text(str(int(time.time() + left)))
        trainer = MyAlgoTrainer.from_pretrained(str(folder), batch_size=2, **sections)
        return trainer.fit(ROWS, callbacks=callbacks)

    def shorten(trainer: Any, step: int, metrics: Any) -> None:
        if step == 2:
            end.write_text(str(int(time.time()) + 105))

    result = fit(500, LambdaCallback(on_step_end=shorten))
    # Saving is guessed to take 10 s, and the margin is 100 s.
    assert (result.status, result.steps) == ("preempted", 2)
    assert result.checkpoint_path.name == "step_000002"
    text = capsys.readouterr().out
    assert "\nthe allocation ends at" in text
    assert "stopping, another step does not fit: the allocation ends at" in text
    # The next start knows how long a save takes, and says when there is no hope.
    state = json.loads((result.checkpoint_path / "trainer_state.json").read_text())
    assert 0 <= state["seconds"]["save"] < 5
    result = fit(50)
    assert (result.status, result.steps) == ("preempted", 2)
    assert "No step was made in this start: raise the time" in capsys.readouterr().out
    assert fit(108).status == "completed"


def test_a_callback_sees_every_step(folder, sections) -> None:
    class Recorder(Callback):
        def __init__(self) -> None:
            self.events: list[Any] = []

        def on_epoch_begin(self, trainer, epoch):
            self.events.append(("epoch", epoch))

        def on_step_end(self, trainer, step, metrics):
            self.events.append((step, metrics["loss"]))

    recorder = Recorder()
    trainer = MyAlgoTrainer.from_pretrained(
        str(folder), batch_size=4, max_epochs=2, **sections
    )
    trainer.fit(dataset=ROWS, callbacks=[recorder])
    steps = [(step, 2.0) for step in (1, 2, 3, 4)]
    expected = [("epoch", 0), *steps[:2], ("epoch", 1), *steps[2:]]
    assert recorder.events == expected


def test_rows_fewer_than_a_step_takes(folder, sections) -> None:
    trainer = MyAlgoTrainer.from_pretrained(str(folder), batch_size=64, **sections)
    with pytest.raises(ConfigurationError, match="only 8 rows"):
        trainer.fit(dataset=ROWS)


def test_what_was_set_up_is_taken_down_after_an_error(folder, sections) -> None:
    class Failing(MyAlgoTrainer):
        def _train_step(self, batch: Any) -> dict[str, float]:
            raise KeyError("mine")

    trainer = Failing.from_pretrained(str(folder), batch_size=2, **sections)
    with pytest.raises(KeyError, match="mine"):
        trainer.fit(dataset=ROWS)
    assert not trainer.preemption._previous
    assert not trainer.policy.ended


def test_memory_is_monitored_beside_the_metrics(folder, sections) -> None:
    logger = {**sections["logger"], "monitor_system": True}
    trainer = MyAlgoTrainer.from_pretrained(
        str(folder), batch_size=8, max_steps=1, **{**sections, "logger": logger}
    )
    log = trainer.fit(dataset=ROWS).log_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    (memory,) = [row for row in rows if "system/driver_memory_gib" in row]
    assert memory["system/driver_memory_gib"] > 0
    assert memory["system/memory_available_gib"] > 0
