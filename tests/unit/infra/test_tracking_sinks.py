"""W&B and MLflow with the real libraries: offline, and with a data base in a file.

Not covered: their servers.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_rl.config.services import LoggerConfig
from nemo_rl.infra.logging import LoggerFacade
from nemo_rl.infra.tracking_sinks import MlflowSink, WandbSink, flatten
from nemo_rl.utils.exceptions import ConfigurationError

OFFLINE = {"project": "p", "name": None, "mode": "offline"}


def records(folder: Path) -> list[Any]:
    """Everything that the finished runs below a folder would send, in order.

    W&B's own process writes it, and may be behind.
    """
    deadline = time.monotonic() + 30
    while True:
        files = sorted(folder.rglob("run-*.wandb"))
        runs = [read_run(file) for file in files]
        if all(run and run[-1].HasField("exit") for run in runs):
            return [record for run in runs for record in run]
        assert time.monotonic() < deadline, "a run has no end"
        time.sleep(0.05)


def read_run(file: Path) -> list[Any]:
    """The records of a run up to its end."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    found, store = [], DataStore()
    with contextlib.suppress(AssertionError):  # the last record is half written
        store.open_for_scan(str(file))
        while not (found and found[-1].HasField("exit")):
            data = store.scan_data()
            if data is None:
                break
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    """The rows of numbers; what begins with an underscore is W&B's own."""
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({k: v for k, v in items.items() if k[0] != "_"})
    return rows


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The library without an account."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    return pytest.importorskip("wandb")


def test_wandb_offline_and_its_resume(wandb, tmp_path) -> None:
    sink = WandbSink(OFFLINE, tmp_path)
    sink.log_hparams({"seed": 1, "grpo": {"k": [1, 2]}})
    sink.log_metrics({"train/loss": 0.5}, 7)
    sink.log_text("val/samples", "a < b", 7)
    sink.close()
    first, text = history(tmp_path)
    assert first == {"train/loss": 0.5, "step": 7}
    assert text["step"] == 7 and text["val/samples/_type"] == "html-file"
    (html,) = tmp_path.rglob("*.html")
    assert "<pre>a &lt; b</pre>" in html.read_text()
    kinds = {r.WhichOneof("record_type"): r for r in records(tmp_path)}
    config = {u.key: json.loads(u.value_json) for u in kinds["config"].config.update}
    assert config == {"seed": 1, "grpo": {"k": [1, 2]}}
    # Any step may be logged again: the axis is a value of its own.
    assert kinds["metric"].metric.step_metric == "step"

    again = WandbSink(OFFLINE, tmp_path, resume=True)
    again.log_metrics({"train/loss": 9.0}, 3)
    again.close()
    runs = {r.run.run_id for r in records(tmp_path) if r.HasField("run")}
    assert runs == {(tmp_path / "wandb_run_id").read_text()}
    assert history(tmp_path)[-1] == {"train/loss": 9.0, "step": 3}
    fresh = WandbSink(OFFLINE, tmp_path)
    fresh.close()
    assert (tmp_path / "wandb_run_id").read_text() not in runs


def test_wandb_without_an_account_says_what_to_do(wandb, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="API key .*wandb.mode to 'offline'"):
        WandbSink({"project": "p", "mode": "online"}, tmp_path)


def test_no_secret_reaches_a_file(wandb, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s" * 40)
    config = LoggerConfig(
        wandb_enabled=True, wandb=OFFLINE, tensorboard_enabled=True, log_dir="logs"
    )
    logger = LoggerFacade(
        config,
        run_config={"policy": {"hf_token": "t" * 40, "seed": 3}},
        run_dir=tmp_path,
    )
    logger.log_metrics({"loss": 1.0}, 1)
    logger.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    for path in files:
        content = path.read_bytes()
        assert b"s" * 40 not in content and b"t" * 40 not in content, path


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def mlflow(monkeypatch):
    """The library with nothing chosen."""
    found = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return found


def test_mlflow_and_its_resume(mlflow, database, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"experiment_name": "e", "run_name": "r", "tracking_uri": database}
    sink = MlflowSink(options, tmp_path)
    sink.log_metrics({"val:accuracy": 0.5, "train/loss": 2.0}, 3)
    sink.log_text("val/samples", "text", 3)
    sink.log_hparams({"a": {f"k{i}": "v" * 900 for i in range(150)}})
    sink.close()
    again = MlflowSink(options, tmp_path, resume=True)
    again.log_hparams({"a": {"k0": "changed"}})
    again.log_metrics({"val:accuracy": 0.75}, 4)
    again.close()

    client = mlflow.MlflowClient(database)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (run.info.run_name, run.info.status) == ("r", "FINISHED")
    assert run.info.run_id == (tmp_path / "mlflow_run_id").read_text()
    points = client.get_metric_history(run.info.run_id, "val/accuracy")
    assert [(point.step, point.value) for point in points] == [(3, 0.5), (4, 0.75)]
    assert len(run.data.params) == 150 and run.data.params["a.k0"] == "v" * 500
    file = mlflow.artifacts.download_artifacts(
        f"{run.info.artifact_uri}/val/samples/step_000003.md", tracking_uri=database
    )
    assert Path(file).read_text() == "text"


def test_mlflow_unless_told_logs_beside_the_other_logs(
    mlflow, tmp_path, monkeypatch
) -> None:
    pytest.importorskip("sqlalchemy")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    sink = MlflowSink({"experiment_name": "e"}, tmp_path / "logs")
    sink.log_text("val/samples", "text", 1)
    sink.close()
    assert (tmp_path / "logs" / "mlflow.db").is_file()
    assert list((tmp_path / "logs" / "artifacts").rglob("step_000001.md"))
    assert not list(here.iterdir())
    assert not mlflow.is_tracking_uri_set()  # the next run chooses anew


def test_mlflow_that_refuses_says_what_to_do(mlflow, tmp_path) -> None:
    options = {"experiment_name": "e", "tracking_uri": "nonsense://x"}
    with pytest.raises(ConfigurationError, match="MLflow does not start.*sqlite:///"):
        MlflowSink(options, tmp_path)


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}
