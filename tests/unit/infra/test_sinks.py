"""JSONL and TensorBoard: what is on disk, read by the real library."""

from __future__ import annotations

import json
import math

import pytest

from nemo_rl.infra.sinks import JsonlSink, TensorBoardSink


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_lines_are_flat_flushed_and_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log_metrics({"train/loss": 0.5, "train/kl": math.nan}, 1)
    (row,) = rows(path)
    assert row["step"] == 1 and row["train/loss"] == 0.5 and row["train/kl"] is None
    assert row["nonfinite"] == {"train/kl": "nan"}
    assert "NaN" not in path.read_text()
    sink.close()


def test_jsonl_resume_cuts_and_continues(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonlSink(path)
    for step in range(1, 6):
        first.log_metrics({"train/loss": float(step)}, step)
    first.close()
    with open(path, "a") as file:
        file.write('{"step": 6, "train/lo')
    second = JsonlSink(path, resume_step=3)
    second.log_metrics({"train/loss": 40.0}, 4)
    second.close()
    assert [(row["step"], row["train/loss"]) for row in rows(path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def accumulate(directory):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    accumulator = event_accumulator.EventAccumulator(
        str(directory), size_guidance={"scalars": 0, "tensors": 0}
    )
    accumulator.Reload()
    return accumulator


def test_tensorboard_hides_repeated_steps_after_a_resume(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("tensorboard")
    first = TensorBoardSink(tmp_path)
    for step in range(1, 6):
        first.log_metrics({"train/loss": float(step)}, step)
    first.close()
    second = TensorBoardSink(tmp_path, resume_step=3)
    second.log_metrics({"train/loss": 40.0}, 4)
    second.close()
    scalars = accumulate(tmp_path).Scalars("train/loss")
    assert [(event.step, event.value) for event in scalars] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_tensorboard_texts_and_settings(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("tensorboard")
    sink = TensorBoardSink(tmp_path)
    sink.log_text("val/samples", "**prompt** 1 + 1", 2)
    sink.log_hparams({"grpo": {"seed": 42}})
    sink.close()
    accumulator = accumulate(tmp_path)
    assert set(accumulator.Tags()["tensors"]) == {
        "val/samples/text_summary",
        "config/text_summary",
    }
    (event,) = accumulator.Tensors("config/text_summary")
    assert b'"seed": 42' in event.tensor_proto.string_val[0]
