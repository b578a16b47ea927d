"""Each sink over the real library (JSONL, TensorBoard) or a module that stands in.

Not covered: the servers of W&B and MLflow; the fakes record what would be sent.
"""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from nemo_rl.infra.sinks import (
    JsonlSink,
    MlflowSink,
    TensorBoardSink,
    WandbSink,
    flatten,
)


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


class FakeWandb:
    """The part of wandb that the sink calls."""

    class Error(Exception):
        pass

    def __init__(self):
        self.logged, self.axes, self.init_args = [], [], {}
        self.settings, self.finished = {}, False

    def init(self, **kwargs):
        self.init_args = kwargs
        return SimpleNamespace(
            id=kwargs.get("id", "new-id"),
            log=self.logged.append,
            define_metric=lambda name, **kw: self.axes.append((name, kw)),
            config=SimpleNamespace(
                update=lambda values, allow_val_change: self.settings.update(values)
            ),
            finish=self.finish,
        )

    def finish(self):
        self.finished = True

    def Html(self, text):  # noqa: N802
        return ("html", text)


def test_wandb_logs_the_step_as_a_value(tmp_path):
    wandb = FakeWandb()
    sink = WandbSink({"project": "p", "name": None}, tmp_path, module=wandb)
    sink.log_hparams({"seed": 1})
    sink.log_metrics({"train/loss": 0.5}, 7)
    sink.log_text("val/samples", "a < b", 7)
    sink.close()
    assert wandb.init_args == {"dir": str(tmp_path), "project": "p"}
    assert wandb.axes == [("step", {}), ("*", {"step_metric": "step"})]
    assert wandb.logged == [
        {"train/loss": 0.5, "step": 7},
        {"val/samples": ("html", "<pre>a &lt; b</pre>"), "step": 7},
    ]
    assert wandb.settings == {"seed": 1} and wandb.finished
    assert FakeWandb.Error in sink.errors


def test_wandb_resumes_the_same_run(tmp_path):
    WandbSink({"project": "p"}, tmp_path, module=FakeWandb())
    again = FakeWandb()
    WandbSink({"project": "p"}, tmp_path, resume=True, module=again)
    assert again.init_args["id"] == "new-id" and again.init_args["resume"] == "allow"
    fresh = FakeWandb()
    WandbSink({"project": "p"}, tmp_path, module=fresh)
    assert "id" not in fresh.init_args


class FakeMlflow:
    """The part of mlflow that the sink calls."""

    def __init__(self):
        self.calls = []

    def start_run(self, run_id=None, run_name=None):
        self.calls.append(("start_run", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "fresh"))

    def __getattr__(self, name):
        if name == "exceptions":
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, *args, kwargs))


def test_mlflow_names_batches_and_ends(tmp_path):
    mlflow = FakeMlflow()
    options = {"experiment_name": "e", "run_name": "r", "tracking_uri": "file:/x"}
    sink = MlflowSink(options, tmp_path, module=mlflow)
    sink.log_metrics({"val:accuracy": 0.5}, 3)
    sink.log_text("val/samples", "text", 3)
    sink.log_hparams({"a": {f"k{i}": "v" * 900 for i in range(150)}})
    sink.close()
    names = [call[0] for call in mlflow.calls]
    assert names == [
        "set_tracking_uri",
        "set_experiment",
        "start_run",
        "log_metrics",
        "log_text",
        "log_params",
        "log_params",
        "end_run",
    ]
    assert mlflow.calls[3] == ("log_metrics", {"val/accuracy": 0.5}, {"step": 3})
    assert mlflow.calls[4][1:3] == ("text", "val/samples/step_000003.md")
    sizes = [len(call[1]) for call in mlflow.calls[5:7]]
    assert sizes == [100, 50]
    assert max(len(value) for value in mlflow.calls[5][1].values()) == 500


def test_mlflow_resumes_the_same_run_and_keeps_its_parameters(tmp_path):
    MlflowSink({}, tmp_path, module=FakeMlflow())
    again = FakeMlflow()
    sink = MlflowSink({}, tmp_path, resume=True, module=again)
    sink.log_hparams({"seed": 2})
    assert again.calls == [("start_run", "fresh", None)]


def test_flatten():
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
