"""An evaluation as a recipe: what the launcher runs where others have a trainer.

It knows neither SLURM nor how an answer is found: `evaluation.evaluate` does the work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from nemo_rl.evals.config import EvalMasterConfig
from nemo_rl.evals.evaluation import evaluate
from nemo_rl.evals.report import EvalResult, table
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.trainers.state import TrainResult
from nemo_rl.utils.files import write_text

SECTIONS = ("policy", "data", "env", "cluster", "eval")


class EvalRun:
    """A recipe with an eval section. It has no checkpoints: a requeue begins anew.

    Args:
        config: the recipe.
    """

    config_class: ClassVar[type[EvalMasterConfig]] = EvalMasterConfig

    def __init__(self, config: EvalMasterConfig | Mapping[str, Any]) -> None:
        """Validate the recipe; nothing is started."""
        if not isinstance(config, EvalMasterConfig):
            config = EvalMasterConfig.from_mapping(config)
        self.config = config
        self.run_dir: Path | None = None
        self.result: EvalResult | None = None

    def fit(
        self,
        callbacks: Sequence[Any] = (),
        *,
        with_policy: PolicyInterface | None = None,
    ) -> TrainResult:
        """Evaluate into `run_dir`; metrics are the values of the estimates.

        Args:
            callbacks: not called; there are no steps.
            with_policy: what answers in place of a policy built here.

        Raises:
            NemoRLError: whatever the evaluation raises.
        """
        del callbacks
        import rich

        sections = {
            name: value
            for name, value in self.config.to_dict().items()
            if name in SECTIONS
        }
        model = sections["policy"].pop("model_name")
        self.result = evaluate(
            model,
            output=self.run_dir,
            with_policy=with_policy,
            progress=_print_progress,
            recipe_dir=self.config.recipe_dir,
            **sections,
        )
        rich.print(table(self.result))
        metrics = {name: each.value for name, each in self.result.metrics.items()}
        if self.run_dir is not None:
            _log(self.run_dir / "logs" / "metrics.jsonl", metrics)
        return TrainResult(steps=0, metrics=metrics, log_dir=self.run_dir)


def _print_progress(done: int, total: int) -> None:
    print(f"answered {done} of {total} prompts", flush=True)


def _log(path: Path, metrics: Mapping[str, float]) -> None:
    """Where a training run has its metrics, so that its readers find these too."""

    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"step": 0} | {f"eval/{name}": value for name, value in metrics.items()}
    write_text(path, json.dumps(line) + "\n")
