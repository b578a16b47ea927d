"""LoggerFacade: one call for every place that metrics, texts and settings go to.

Knows which sinks are switched on and how tags are grouped; not what is measured.
Rank-aware: only rank 0 has sinks, so that other ranks may call it all the same.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rl.infra.sinks import JsonlSink, Sink, TensorBoardSink
from nemo_rl.infra.tracking_sinks import MlflowSink, WandbSink
from nemo_rl.utils.secrets import masked

log = logging.getLogger(__name__)

GROUPS = ("train", "val", "timing", "gpu", "system")
"""First parts of a tag. A metric that has one already is not prefixed again."""


class LoggerFacade:
    """Sends each metric to every sink of the `logger` section.

    A sink that fails while training (a full disk, no network) is switched off with
    a warning; training goes on. One that cannot be *started* is an error.

    Args:
        config: the `logger` section.
        run_config: the whole configuration, logged once; values whose key names a
            secret are masked.
        run_dir: folder of the run; a relative `logger.log_dir` lies in it.
        resume_step: the last step that the resumed checkpoint contains. Later rows,
            written before the run was stopped, are removed. None: a fresh run.
        rank: ranks other than 0 log nowhere.

    Attributes:
        log_dir: the folder of all of this.
        metrics_path: the JSONL file.
        tensorboard_dir: event files; None where TensorBoard is off.

    Raises:
        ConfigurationError: a sink is on whose package is not installed.
    """

    def __init__(
        self,
        config: Any,
        *,
        run_config: Mapping[str, Any] | None = None,
        run_dir: Path | str | None = None,
        resume_step: int | None = None,
        rank: int = 0,
    ) -> None:
        """Start the sinks that are switched on."""
        log_dir = Path(config.log_dir).expanduser()
        self.log_dir = (Path(run_dir or ".") / log_dir).absolute()
        self.metrics_path = self.log_dir / "metrics.jsonl"
        self.tensorboard_dir = (
            self.log_dir / "tensorboard" if config.tensorboard_enabled else None
        )
        self._samples = int(config.num_val_samples_to_print)
        self._lock = threading.RLock()
        self._sinks: list[Sink] = []
        if rank == 0:
            self._sinks = self._start(config, resume_step)
            if run_config is not None:
                self.log_hparams(run_config)

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int, prefix: str = "train"
    ) -> None:
        """Log numbers: {"loss": .1, "timing/step_s": 2} -> train/loss, timing/step_s.

        Tensors of one element, numpy scalars and booleans are numbers; nested
        mappings become a/b; anything else is left out.
        """
        flat = tagged(metrics, prefix)
        if flat:
            self._each("log_metrics", flat, step)

    def log_text(self, tag: str, text: str, step: int) -> None:
        """Log a text in Markdown under `tag`."""
        self._each("log_text", tag, text, step)

    def log_samples(
        self, samples: Sequence[Mapping[str, Any]], step: int, prefix: str = "val"
    ) -> None:
        """Log the first `logger.num_val_samples_to_print` completions as text.

        Args:
            samples: mappings with prompt, response and, where known, answer and
                reward.
            step: training steps completed.
            prefix: group of the tag.
        """
        shown = samples[: self._samples]
        if shown:
            self.log_text(f"{prefix}/samples", samples_markdown(shown), step)

    def log_hparams(self, config: Mapping[str, Any]) -> None:
        """Log the configuration of the run, secrets masked."""
        self._each("log_hparams", masked(config))

    def close(self) -> None:
        """Write out and end every sink; a second call does nothing."""
        self._each("close")
        self._sinks = []

    def _start(self, config: Any, resume_step: int | None) -> list[Sink]:
        resume = bool(resume_step)
        self.log_dir.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = []
        # What may fail for a missing package comes before what changes files.
        if config.wandb_enabled:
            sinks.append(
                WandbSink(config.wandb.to_dict(), self.log_dir / "wandb", resume=resume)
            )
        if config.mlflow_enabled:
            sinks.append(
                MlflowSink(
                    config.mlflow.to_dict(), self.log_dir / "mlflow", resume=resume
                )
            )
        if self.tensorboard_dir is not None:
            sinks.append(TensorBoardSink(self.tensorboard_dir, resume_step))
        sinks.append(JsonlSink(self.metrics_path, resume_step))
        return sinks

    def _each(self, method: str, *args: Any) -> None:
        # The monitor logs from a thread of its own.
        with self._lock:
            for sink in list(self._sinks):
                try:
                    getattr(sink, method)(*args)
                except sink.errors as error:
                    self._sinks.remove(sink)
                    log.warning(
                        "logging to %s failed and is switched off for the rest of "
                        "this run: %s",
                        sink.name,
                        error,
                    )


def setup_logger(
    config: Any = None,
    *,
    run_config: Mapping[str, Any] | None = None,
    run_dir: Path | str | None = None,
    resume_step: int | None = None,
    rank: int = 0,
    level: int | str = logging.INFO,
) -> LoggerFacade:
    """Show the messages of `nemo_rl` on stderr and start the metrics' sinks.

    Args:
        config: the `logger` section; None for its defaults.
        run_config: see `LoggerFacade`.
        run_dir: see `LoggerFacade`.
        resume_step: see `LoggerFacade`.
        rank: see `LoggerFacade`.
        level: of the Python logger "nemo_rl".
    """
    show_messages(level)
    if config is None:
        from nemo_rl.config.services import LoggerConfig

        config = LoggerConfig()
    return LoggerFacade(
        config,
        run_config=run_config,
        run_dir=run_dir,
        resume_step=resume_step,
        rank=rank,
    )


def show_messages(level: int | str = logging.INFO) -> None:
    """Give the Python logger "nemo_rl" one handler on stderr.

    A level that the user has set stays, and so do handlers of the application.
    """
    logger = logging.getLogger("nemo_rl")
    if logger.level == logging.NOTSET:
        logger.setLevel(level)
    if not logger.hasHandlers():
        logger.addHandler(_CurrentStderr())


class _CurrentStderr(logging.Handler):
    """Writes to what sys.stderr is at that moment: a live display replaces it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, TypeError):
            # A closed stream or a message that does not format: never the training.
            self.handleError(record)


def tagged(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Flatten to tag -> float; a tag starts with one of `GROUPS` or with `prefix`."""
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        tag = str(key).replace(":", "/")
        if tag.partition("/")[0] not in GROUPS or "/" not in tag:
            tag = f"{prefix}/{tag}" if prefix else tag
        if isinstance(value, Mapping):
            flat |= tagged({f"{tag}/{k}": v for k, v in value.items()}, prefix)
            continue
        number = _number(value)
        if number is not None:
            flat[tag] = number
    return flat


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def samples_markdown(samples: Sequence[Mapping[str, Any]]) -> str:
    """Completions for reading: prompt, response, answer and reward of each."""
    parts = []
    for number, sample in enumerate(samples, start=1):
        lines = [f"### Sample {number}"]
        for field in ("prompt", "response", "answer", "reward"):
            if sample.get(field) is None:
                continue
            text = str(sample[field])
            indented = "\n".join("    " + line for line in text.splitlines() or [""])
            lines.append(f"**{field}**\n\n{indented}")
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)
