"""What a person reads at the start and at the end of a run."""

from __future__ import annotations

from typing import Any

from nemo_rl.infra.console import RunSummary, SampleChange
from nemo_rl.trainers.state import TrainResult
from nemo_rl.trainers.validation import ValidationResult
from nemo_rl.utils import env

_SAMPLES = 3


def run_facts(trainer: Any) -> dict[str, str]:
    """Facts about a run for the head of the display."""
    config, dims = trainer.config, trainer.config.parallel_dims
    cluster = config.cluster
    kind = "GPU" if cluster.use_gpus else "CPU"
    mixed = " + ".join(source.dataset_name for source in config.data.mixture)
    container = {"container": "yes"} if env.flag("NRL_CONTAINER") else {}
    return {
        "model": config.policy.model_name,
        "data": f"{config.data.dataset_name or mixed or 'given in code'}, "
        f"{len(trainer.data)} rows",
        "workers": (
            f"{dims.world_size} {kind} (TP{dims.tp} PP{dims.pp} DP{dims.dp}) on "
            f"{cluster.num_nodes} node{'s' * (cluster.num_nodes > 1)}"
        ),
        "logs": str(trainer.logger.log_dir),
        **container,
    }


def run_summary(
    result: TrainResult,
    first: ValidationResult | None,
    last: ValidationResult | None,
    *,
    elapsed_s: float,
) -> RunSummary:
    """Before and after, three answers that changed most, and where everything is."""
    history = result.validation_history
    # A resumed run may have begun without a validation: the first that has the metric.
    metric = "accuracy" if history and "accuracy" in history[-1] else "loss"
    values = [entry[metric] for entry in history if metric in entry]
    return RunSummary(
        status=result.status,
        steps=result.steps,
        elapsed_s=elapsed_s,
        metric=metric,
        before=values[0] if values else None,
        after=values[-1] if len(values) > 1 else None,
        samples=_changes(first, last),
        paths={
            "checkpoint": result.checkpoint_path,
            "model (Hugging Face)": result.hf_export_path,
            "TensorBoard": result.tensorboard_dir,
            "rollouts": result.rollouts_path,
            "logs": result.log_dir,
        },
    )


def _changes(
    first: ValidationResult | None, last: ValidationResult | None
) -> list[SampleChange]:
    if first is None or last is None or first is last:
        return []
    pairs = list(zip(first.samples, last.samples, strict=False))
    # Samples of a resumed run may come from another start: only equal prompts compare.
    pairs = [(a, b) for a, b in pairs if a["prompt"] == b["prompt"]]
    # One of each kind first, so that three samples show the run honestly.
    gained = [p for p in pairs if p[1]["reward"] > p[0]["reward"]]
    lost = [p for p in pairs if p[1]["reward"] < p[0]["reward"]]
    same = [p for p in pairs if p[1]["reward"] == p[0]["reward"]]
    picked = [group[0] for group in (gained, same, lost) if group]
    rest = [p for p in gained + same + lost if p not in picked]
    return [_change(a, b) for a, b in (picked + rest)[:_SAMPLES]]


def _change(before: dict[str, Any], after: dict[str, Any]) -> SampleChange:
    return SampleChange(
        # The turn that is answered, without the template around it.
        prompt=before.get("question", before["prompt"]),
        before=before["response"],
        after=after["response"],
        answer=before.get("answer"),
        before_reward=before["reward"],
        after_reward=after["reward"],
    )
