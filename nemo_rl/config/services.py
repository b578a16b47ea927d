"""The checkpointing and logger sections; knows no service."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from nemo_rl.config.base import BaseConfig

_MUST_SAVE_BY = re.compile(r"\d{2}:\d{2}:\d{2}:\d{2}")


class CheckpointingConfig(BaseConfig):
    """When weights, optimizer and counters are saved, and which are kept."""

    enabled: bool = True
    """Save checkpoints."""
    checkpoint_dir: str = "results/grpo"
    """Folder of the checkpoints."""
    metric_name: str | None = "val:accuracy"
    """Metric that ranks them, "val:" or "train:" and its name; None: the newest."""
    higher_is_better: bool = True
    """Whether a higher metric is better."""
    keep_top_k: int | None = Field(3, ge=1)
    """How many of the best are kept beside the newest; None keeps all."""
    save_period: int = Field(10, ge=1)
    """Steps between two checkpoints."""
    save_consolidated: bool = False
    """Write a Hugging Face folder with every checkpoint."""
    export_hf: bool = True
    """Write a Hugging Face folder when training ends."""
    resume: bool = True
    """Continue from the newest complete checkpoint of checkpoint_dir."""
    checkpoint_must_save_by: str | None = None
    """Save and stop within this much time, "DD:HH:MM:SS"; None: no such limit."""
    end_margin_s: float = Field(60, ge=0)
    """Seconds kept free after the last save, before SLURM's time limit."""
    save_optimizer: bool = True
    """Save the optimizer's state; without it a resumed run is not exact."""
    model_save_format: str | None = None
    """Accepted; exported weights are safetensors."""

    @field_validator("metric_name")
    @classmethod
    def _prefixed(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("val:", "train:")):
            raise ValueError(
                f"must say which metric: 'val:{value}' or 'train:{value}'."
            )
        return value

    @field_validator("checkpoint_must_save_by")
    @classmethod
    def _duration(cls, value: str | None) -> str | None:
        if value is not None and not _MUST_SAVE_BY.fullmatch(value):
            raise ValueError("is no duration. Expected 'DD:HH:MM:SS'.")
        return value

    @property
    def must_save_by_s(self) -> float | None:
        """checkpoint_must_save_by in seconds."""
        if self.checkpoint_must_save_by is None:
            return None
        days, hours, minutes, seconds = map(
            int, self.checkpoint_must_save_by.split(":")
        )
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


class WandbConfig(BaseConfig):
    """Weights & Biases run."""

    project: str = "nemo-rl"
    """Project."""
    name: str | None = None
    """Run name; None lets the service choose."""
    entity: str | None = None
    """Team or user."""
    group: str | None = None
    """Group of runs."""
    tags: list[str] = Field(default_factory=list)
    """Tags of the run."""
    mode: Literal["online", "offline", "disabled"] | None = None
    """None means the service's default; offline needs no account."""


class MLflowConfig(BaseConfig):
    """MLflow run."""

    experiment_name: str = "nemo-rl"
    """Experiment."""
    run_name: str | None = None
    """Run name; None lets the service choose."""
    tracking_uri: str | None = None
    """Server or data base; None: MLFLOW_TRACKING_URI, else a file in log_dir."""


class GPUMonitoringConfig(BaseConfig):
    """How often GPUs and system are looked at."""

    collection_interval: float = Field(10, gt=0)
    """Seconds between two samples."""
    flush_interval: float = Field(10, gt=0)
    """Seconds between two writes."""


class LoggerConfig(BaseConfig):
    """Where metrics and samples go."""

    log_dir: str = "logs"
    """Folder of metrics.jsonl, rollouts and TensorBoard files."""
    tensorboard_enabled: bool = True
    """Write TensorBoard files."""
    wandb_enabled: bool = False
    """Log to Weights & Biases."""
    mlflow_enabled: bool = False
    """Log to MLflow."""
    swanlab_enabled: bool = False
    """Not available."""
    monitor_gpus: bool = True
    """Log utilisation and memory of the GPUs."""
    monitor_system: bool = False
    """Log processor time and memory of this machine, the driver and its workers."""
    gpu_monitoring: GPUMonitoringConfig = Field(default_factory=GPUMonitoringConfig)
    """How often GPUs and system are looked at."""
    num_val_samples_to_print: int = Field(3, ge=0)
    """Validation samples shown in the console."""
    console: Literal["auto", "rich", "plain", "off"] = "auto"
    """Live table, plain lines, nothing; auto: the table on a terminal."""
    save_rollouts: bool = True
    """Write every sampled response to rollouts.jsonl."""
    wandb: WandbConfig = Field(default_factory=WandbConfig)
    """Weights & Biases run."""
    mlflow: MLflowConfig = Field(default_factory=MLflowConfig)
    """MLflow run."""
    tensorboard: dict[str, Any] = Field(default_factory=dict)
    """Accepted; files go to log_dir/tensorboard."""
    swanlab: dict[str, Any] = Field(default_factory=dict)
    """Accepted, see swanlab_enabled."""
