"""Services where metrics go: Weights & Biases and MLflow.

Each is imported when its sink is made, not before. Knows no key and no password: the
libraries find those themselves, in the environment or in their own files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import require

_WANDB_CURE = (
    "Run `wandb login`, or set logger.wandb.mode to 'offline' (and `wandb sync` the "
    "folder later), or logger.wandb_enabled to false."
)
_MLFLOW_CURE = (
    "Set logger.mlflow.tracking_uri to a server or to a data base as in "
    "'sqlite:////path/mlflow.db', or logger.mlflow_enabled to false."
)


class WandbSink:
    """Weights & Biases. A resumed run continues the same W&B run.

    W&B refuses steps that do not increase, and a resume repeats some; the step is
    therefore logged as a value that charts use as their axis.

    Args:
        options: the `logger.wandb` section (project, name, ...), given to init.
        directory: W&B's local files and the id of the run.
        resume: continue the run whose id is stored there.
    """

    name = "Weights & Biases"

    def __init__(
        self,
        options: Mapping[str, Any],
        directory: Path,
        *,
        resume: bool = False,
    ) -> None:
        """Start or continue the run.

        Raises:
            ConfigurationError: wandb is not installed, or refuses to start.
        """
        wandb = require("wandb", instead="set logger.wandb_enabled to false")
        directory.mkdir(parents=True, exist_ok=True)
        id_file = directory / "wandb_run_id"
        self.errors = (OSError, wandb.Error)
        self._wandb = wandb
        given = {key: value for key, value in options.items() if value is not None}
        stored = _stored(id_file) if resume else None
        if stored:
            given |= {"id": stored, "resume": "allow"}
        with _refused(wandb.Error, self.name, _WANDB_CURE):
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
    ) -> None:
        """Start or continue the run.

        Raises:
            ConfigurationError: mlflow is not installed, or refuses to start.
        """
        mlflow = require("mlflow", instead="set logger.mlflow_enabled to false")
        directory.mkdir(parents=True, exist_ok=True)
        id_file = directory / "mlflow_run_id"
        failure = mlflow.exceptions.MlflowException
        self.errors = (OSError, failure)
        self._mlflow = mlflow
        # The choice is the process's, and ends with this sink.
        chosen = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        self._uri_before = chosen
        stored = _stored(id_file) if resume else None
        with _refused(failure, self.name, _MLFLOW_CURE):
            self._choose_store(options, directory)
            run = mlflow.start_run(run_id=stored, run_name=options.get("run_name"))
        self._resumed = stored is not None
        id_file.write_text(str(run.info.run_id), encoding="utf-8")

    def _choose_store(self, options: Mapping[str, Any], directory: Path) -> None:
        """Log where the options or the environment say, else into `directory`."""
        mlflow, name = self._mlflow, options["experiment_name"]
        if options.get("tracking_uri"):
            mlflow.set_tracking_uri(options["tracking_uri"])
        elif not mlflow.is_tracking_uri_set():
            folder = directory.absolute()
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            if mlflow.get_experiment_by_name(name) is None:
                # Artifacts of a local store would go to the current folder.
                mlflow.create_experiment(name, str(folder / "artifacts"))
        mlflow.set_experiment(name)

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
        self._mlflow.set_tracking_uri(self._uri_before)


@contextmanager
def _refused(failure: type[Exception], name: str, cure: str) -> Iterator[None]:
    """A service that does not start is the user's to mend."""
    try:
        yield
    except failure as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"{name} does not start: {reason} {cure}") from error


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
