"""One class per place where metrics go: JSONL, TensorBoard, W&B, MLflow.

A sink receives finished tags and numbers; it knows nothing of prefixes, configs or
training. W&B and MLflow are imported when their sink is made, not before.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from nemo_rl.utils.files import prepare_jsonl
from nemo_rl.utils.imports import require


class Sink(Protocol):
    """What the facade asks of a place to log to.

    Attributes:
        name: for messages.
    """

    name: str

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """Exceptions of its library: they switch it off, training goes on."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers under their tags."""

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Record a text in Markdown."""

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Record the configuration of the run, once."""

    def close(self) -> None:
        """Write out everything."""


class JsonlSink:
    """One line per call in `metrics.jsonl`: {"step": 3, "time": ..., "train/loss": .1}.

    JSON has no NaN and no infinity: these are null, and the line says what they
    were under "nonfinite".

    Args:
        path: the file; see `prepare_jsonl` for what happens to old rows.
        resume_step: the step the run continues after; None or 0 for a fresh run.
    """

    name = "metrics.jsonl"
    errors = (OSError,)

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        """Cut or set aside old rows and open the file to append."""
        prepare_jsonl(path, resume_step)
        self.path = path
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line and hand it to the operating system."""
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        row: dict[str, Any] = {"step": step, "time": _now(), **finite}
        odd = {k: str(v) for k, v in metrics.items() if not math.isfinite(v)}
        if odd:
            row["nonfinite"] = odd
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Texts are not kept here; rollouts.jsonl has every completion."""

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """The configuration stands in the run folder as a file of its own."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Event files for TensorBoard; a resumed run hides the steps it repeats.

    Args:
        directory: where the event files go.
        resume_step: events after it, written by the run that was stopped, are
            marked as superseded.
    """

    name = "TensorBoard"
    errors = (OSError,)

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        """Open an event file.

        Raises:
            ConfigurationError: tensorboard is not installed.
        """
        require("tensorboard", instead="set logger.tensorboard_enabled to false")
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        purge = resume_step + 1 if resume_step else 0
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one scalar per tag and flush, so that a live view is up to date."""
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Add Markdown to the Text tab."""
        self._writer.add_text(tag, text, step)
        self._writer.flush()

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Add the configuration to the Text tab as indented JSON."""
        lines = json.dumps(config, indent=2, default=str).splitlines()
        self.log_text("config", "\n".join("    " + line for line in lines), 0)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbSink:
    """Weights & Biases. A resumed run continues the same W&B run.

    W&B refuses steps that do not increase, and a resume repeats some; the step is
    therefore logged as a value that charts use as their axis.

    Args:
        options: the `logger.wandb` section (project, name, ...), given to init.
        directory: W&B's local files and the id of the run.
        resume: continue the run whose id is stored there.
        module: stands in for the wandb module in tests.
    """

    name = "Weights & Biases"

    def __init__(
        self,
        options: Mapping[str, Any],
        directory: Path,
        *,
        resume: bool = False,
        module: Any = None,
    ) -> None:
        """Start or continue the run.

        Raises:
            ConfigurationError: wandb is not installed.
        """
        wandb = module or require("wandb", instead="set logger.wandb_enabled to false")
        directory.mkdir(parents=True, exist_ok=True)
        id_file = directory / "wandb_run_id"
        self.errors = (OSError, getattr(wandb, "Error", OSError))
        self._wandb = wandb
        given = {key: value for key, value in options.items() if value is not None}
        stored = _stored(id_file) if resume else None
        if stored:
            given |= {"id": stored, "resume": "allow"}
        self._run = wandb.init(dir=str(directory), **given)
        id_file.write_text(str(self._run.id), encoding="utf-8")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the numbers with the step beside them."""
        self._run.log({**metrics, "step": step})

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log Markdown as preformatted HTML."""
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        html = self._wandb.Html(f"<pre>{escaped}</pre>")
        self._run.log({tag: html, "step": step})

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Store the configuration; a resumed run may have changed it."""
        self._run.config.update(dict(config), allow_val_change=True)

    def close(self) -> None:
        """Finish the run and wait for the upload."""
        self._run.finish()


class MlflowSink:
    """MLflow tracking. A resumed run continues the same MLflow run.

    Args:
        options: the `logger.mlflow` section: experiment_name, run_name, tracking_uri.
        directory: holds the id of the run.
        resume: continue the run whose id is stored there.
        module: stands in for the mlflow module in tests.
    """

    name = "MLflow"

    # Limits of the tracking server.
    _params_per_call = 100
    _longest_param = 500

    def __init__(
        self,
        options: Mapping[str, Any],
        directory: Path,
        *,
        resume: bool = False,
        module: Any = None,
    ) -> None:
        """Start or continue the run.

        Raises:
            ConfigurationError: mlflow is not installed.
        """
        mlflow = module or require(
            "mlflow", instead="set logger.mlflow_enabled to false"
        )
        directory.mkdir(parents=True, exist_ok=True)
        id_file = directory / "mlflow_run_id"
        failure = getattr(getattr(mlflow, "exceptions", None), "MlflowException", None)
        self.errors = (OSError, failure or OSError)
        self._mlflow = mlflow
        if options.get("tracking_uri"):
            mlflow.set_tracking_uri(options["tracking_uri"])
        if options.get("experiment_name"):
            mlflow.set_experiment(options["experiment_name"])
        stored = _stored(id_file) if resume else None
        run = mlflow.start_run(run_id=stored, run_name=options.get("run_name"))
        self._resumed = stored is not None
        id_file.write_text(str(run.info.run_id), encoding="utf-8")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all numbers of a step in one request."""
        self._mlflow.log_metrics({_name(k): v for k, v in metrics.items()}, step=step)

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Store Markdown as an artifact."""
        self._mlflow.log_text(text, f"{_name(tag)}/step_{step:06d}.md")

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Log one parameter per leaf of the configuration.

        A parameter cannot be changed, so a resumed run keeps those of its start.
        """
        if self._resumed:
            return
        leaves = list(flatten(config).items())
        for start in range(0, len(leaves), self._params_per_call):
            part = leaves[start : start + self._params_per_call]
            self._mlflow.log_params(
                {_name(k): str(v)[: self._longest_param] for k, v in part}
            )

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def flatten(mapping: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        path = f"{parent}.{key}" if parent else str(key)
        if isinstance(value, Mapping):
            flat |= flatten(value, path)
        else:
            flat[path] = value
    return flat


def _name(tag: str) -> str:
    """A name that MLflow accepts: letters, digits, and _ - . / only."""
    return re.sub(r"[^\w\-./ ]", "/", tag)


def _stored(file: Path) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file.exists() else None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")
