"""Log-probs of rollouts beside the trainer's, step by step: a limit and an alarm.

Keeps the course of the difference over the run; knows no engine and no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.metrics.change_point import RiseDetector
from nemo_rl.models.policy.canary import Score, rollout_mismatch
from nemo_rl.models.policy.guard_findings import Finding, scale_hint


class RolloutCheck:
    """Compares some responses of every rollout.

    Args:
        rows: responses that are compared.
        limit: largest mean exp|log-prob difference|.
    """

    def __init__(self, rows: int, limit: float) -> None:
        self._rows, self._limit = rows, limit
        self._rise = RiseDetector()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return self._rise.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._rise.load_state_dict(state)

    def run(
        self, batch: BatchedDataDict, score: Score, version: int | None = None
    ) -> tuple[list[Finding], dict[str, float]]:
        """Compare; counts as a step of the run.

        Args:
            batch: see ``rollout_mismatch``.
            score: the trainer's log-probs.
            version: of the trainer's weights.

        Returns:
            Findings of kinds "rollout" and "rise", and numbers for the log.
        """
        errors = rollout_mismatch(batch, score, self._rows, version=version)
        if errors is None:
            return [], {}
        metrics = {"guard/rollout_tokens": float(errors.tokens)}
        if errors.not_finite:
            detail = f"{errors.not_finite} log-probs of {errors.tokens} are not finite"
            finding = Finding(kind="rollout", tensor="rollout", detail=detail)
            return [finding], metrics
        error = errors.mult_prob_error
        metrics |= {"guard/mult_prob_error": error, "guard/gen_kl": errors.gen_kl}
        alarm = self._rise.add(error - 1.0)
        findings = []
        if error > self._limit:
            detail = (
                f"mean exp|log-prob difference| {error:.4g} over {errors.tokens} "
                f"tokens, may be {self._limit:g}"
                f"{scale_hint(errors)}"
            )
            findings.append(Finding(kind="rollout", tensor="rollout", detail=detail))
        if alarm is not None:
            detail = (
                f"mean exp|log-prob difference| - 1 is {alarm.value:.3g}; it used to "
                f"be {alarm.usual:.3g} until about {alarm.begun} steps ago"
            )
            findings.append(Finding(kind="rise", tensor="rollout", detail=detail))
        return findings, metrics
