"""TrainState, the counters a resume continues from, and TrainResult, what fit returns.

Plain data: knows nothing of models, files other than its own, or devices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.files import write_json

STATE_FORMAT = 1


@dataclass
class TrainState:
    """Where a run stands after `step` training steps. Saved in every checkpoint.

    Attributes:
        step: training steps completed, over all epochs.
        epoch: epoch of the next step, from 0.
        step_in_epoch: steps completed in that epoch.
        consumed_samples: completions trained on.
        total_valid_tokens: tokens that carried loss.
        elapsed_s: training time, over all starts of the run.
        best_metric: the best value of `checkpointing.metric_name` so far.
        best_step: the step of `best_metric`.
        last_validation_step: the last step that was validated; None for none.
        validation_history: one {"step": n, name: number} per validation.
        data: `DataModule.state_dict()`: epoch, position and seed of the data.
        seconds: what a step, a validation and a save took at most of late.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    consumed_samples: int = 0
    total_valid_tokens: int = 0
    elapsed_s: float = 0.0
    best_metric: float | None = None
    best_step: int | None = None
    last_validation_step: int | None = None
    validation_history: list[dict[str, float]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def finish_step(self, *, samples: int, valid_tokens: int, seconds: float) -> None:
        """Count one completed training step."""
        self.step += 1
        self.step_in_epoch += 1
        self.consumed_samples += int(samples)
        self.total_valid_tokens += int(valid_tokens)
        self.elapsed_s += float(seconds)

    def finish_epoch(self) -> None:
        """Count one completed epoch."""
        self.epoch += 1
        self.step_in_epoch = 0

    def record_validation(
        self,
        metrics: Mapping[str, float],
        *,
        metric: str | None = None,
        higher_is_better: bool = True,
    ) -> bool:
        """Keep a validation at the present step; True if it is the best so far.

        Args:
            metrics: name -> number.
            metric: which name decides; None for none.
            higher_is_better: its direction.
        """
        self.last_validation_step = self.step
        numbers = {name: float(value) for name, value in metrics.items()}
        self.validation_history.append({"step": self.step, **numbers})
        if metric is None or metric not in numbers:
            return False
        value = numbers[metric]
        if value != value:
            return False
        sign = 1.0 if higher_is_better else -1.0
        if self.best_metric is not None and sign * value <= sign * self.best_metric:
            return False
        self.best_metric, self.best_step = value, self.step
        return True

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` reads them back."""
        return {"format": STATE_FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainState:
        """Read what `to_dict` gave.

        Raises:
            CheckpointError: another format, or fields missing or unknown.
        """
        values = dict(values)
        found = values.pop("format", None)
        if found != STATE_FORMAT:
            raise CheckpointError(
                f"the trainer state has format {found!r}, this version reads "
                f"{STATE_FORMAT}. It was written by another version of nemo_rl."
            )
        known = {f.name for f in fields(cls)}
        missing = sorted(known - {"seconds"} - set(values))  # A guess will do.
        unknown = sorted(set(values) - known)
        if missing or unknown:
            raise CheckpointError(
                "the trainer state was written by another version of nemo_rl: "
                f"missing {missing}, unknown {unknown}."
            )
        return cls(**values)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> TrainState:
        """Read a file that `save` wrote.

        Raises:
            CheckpointError: it is missing, damaged, or of another version.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"the trainer state {path} cannot be read: {error}"
            ) from error


@dataclass
class TrainResult:
    """What `train()` and `Trainer.fit()` return.

    Attributes:
        steps: training steps completed, those before a resume included.
        metrics: the metrics of the last step of this start.
        history: the metrics of each step of this start, each with its "step".
        validation_history: one {"step": n, name: number} per validation, over all
            starts.
        status: "completed", "stopped" (`stop`, or the file STOP), "preempted" (saved,
            to be continued) or "time_limit".
        checkpoint_path: the last checkpoint; None if none was saved.
        log_dir: folder of metrics.jsonl and the other logs.
        tensorboard_dir: event files; None where TensorBoard is off.
        rollouts_path: every completion, as JSONL; None where that is off.
        hf_export_path: the model as a Hugging Face folder; None if not exported.
    """

    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    validation_history: list[dict[str, float]] = field(default_factory=list)
    status: str = "completed"
    checkpoint_path: Path | None = None
    log_dir: Path | None = None
    tensorboard_dir: Path | None = None
    rollouts_path: Path | None = None
    hf_export_path: Path | None = None

    @property
    def initial_validation(self) -> dict[str, float] | None:
        """The first validation, before training if `val_at_start` was set."""
        return self.validation_history[0] if self.validation_history else None

    @property
    def final_validation(self) -> dict[str, float] | None:
        """The last validation."""
        return self.validation_history[-1] if self.validation_history else None
