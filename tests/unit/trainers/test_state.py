"""Counters survive JSON exactly; another version's state is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_rl.trainers.state import TrainResult, TrainState
from nemo_rl.utils.exceptions import CheckpointError


def trained() -> TrainState:
    state = TrainState(data={"epoch": 0, "position": 4})
    state.record_validation({"accuracy": 0.1}, metric="accuracy")
    state.finish_step(samples=8, valid_tokens=100, seconds=1.5)
    state.finish_step(samples=8, valid_tokens=90, seconds=1.25)
    state.finish_epoch()
    state.finish_step(samples=4, valid_tokens=10, seconds=0.1)
    return state


def test_counters():
    state = trained()
    assert (state.step, state.epoch, state.step_in_epoch) == (3, 1, 1)
    assert (state.consumed_samples, state.total_valid_tokens) == (20, 200)
    assert state.elapsed_s == pytest.approx(2.85)


def test_the_best_validation_is_remembered():
    state = TrainState()
    assert state.record_validation({"accuracy": 0.5}, metric="accuracy")
    state.step = 10
    assert not state.record_validation({"accuracy": 0.5}, metric="accuracy")
    assert not state.record_validation({"accuracy": float("nan")}, metric="accuracy")
    assert not state.record_validation({"other": 1.0}, metric="accuracy")
    assert not state.record_validation({"accuracy": 0.9})
    assert (state.best_metric, state.best_step) == (0.5, 0)
    assert state.last_validation_step == 10
    assert state.validation_history[1] == {"step": 10, "accuracy": 0.5}


def test_lower_can_be_better():
    state = TrainState()
    for value, best in ((2.0, True), (3.0, False), (1.0, True)):
        found = state.record_validation(
            {"loss": value}, metric="loss", higher_is_better=False
        )
        assert found is best
    assert state.best_metric == 1.0


def test_a_file_brings_back_the_same_state(tmp_path):
    state = trained()
    state.save(tmp_path / "trainer_state.json")
    assert TrainState.load(tmp_path / "trainer_state.json") == state
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_other_versions_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="format None, this version reads 1"):
        TrainState.from_dict({})
    values = {**trained().to_dict(), "surprise": 1}
    del values["epoch"]
    with pytest.raises(CheckpointError, match=r"missing \['epoch'\], unknown \['surpr"):
        TrainState.from_dict(values)


def test_a_state_without_learned_seconds_is_read():
    values = trained().to_dict()
    del values["seconds"]
    assert TrainState.from_dict(values) == trained()


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "trainer_state.json"
    for text in (None, "{"):
        if text is not None:
            file.write_text(text)
        with pytest.raises(CheckpointError, match="trainer_state.json cannot be read"):
            TrainState.load(file)


def test_result_knows_the_first_and_the_last_validation():
    empty = TrainResult(steps=0)
    assert empty.initial_validation is None and empty.final_validation is None
    history = [{"step": 0, "accuracy": 0.1}, {"step": 5, "accuracy": 0.9}]
    result = TrainResult(steps=5, validation_history=history, log_dir=Path("logs"))
    assert result.initial_validation["accuracy"] == 0.1
    assert result.final_validation["accuracy"] == 0.9
    assert result.status == "completed"
