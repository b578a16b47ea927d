"""Guard: does the generator have the trainer's weights, before anything is learnt?

After every transfer it compares digests and has canaries answered; before every update
it compares the log-probs of the rollout with the trainer's. What it finds it writes
down, and then warns, has the weights sent once more, or halts. Moves no weights itself
and knows no engine: what it needs of them arrives as callables and digests.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nemo_rl.backends.refit.held import EngineWeights
from nemo_rl.config.refit import GuardConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.canary import (
    CanaryAnswer,
    Generate,
    Score,
    canary_batch,
    run_canary,
)
from nemo_rl.models.policy.guard_findings import (
    Finding,
    Transferred,
    canary_findings,
    digest_findings,
)
from nemo_rl.models.policy.guard_reaction import Look, Reaction
from nemo_rl.models.policy.rollout_check import RolloutCheck
from nemo_rl.utils.exceptions import TrainingError, WorkerError

Resync = Callable[[], Transferred | None]
"""Sends the weights once more; what they left behind."""

_TOLERANCE = {"float32": 1e-3}
_TOLERANCE_ELSE = 0.2
_REMEMBERED = 3
"""Transfers whose digests are kept, to recognise old weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardOutcome:
    """What a check before an update came to.

    Attributes:
        metrics: for the log.
        usable: the batch may be learnt from; otherwise its responses come from other
            weights than was thought, which have been sent again, and it must be
            sampled anew.
        findings: what was found.
    """

    metrics: dict[str, float]
    usable: bool = True
    findings: list[Finding] = dataclasses.field(default_factory=list)


class Guard:
    """Watches one generator.

    Args:
        config: policy.generation.guard.
        log_dir: of the run; reports go to ``guard/`` below it.
        precision: of the generator: ``float32``, or anything coarser.
        tokenizer: for the canaries; without one, ``vocab_size`` is needed.
        vocab_size: ids that canaries are drawn from where there is no tokenizer.
        special_ids: never drawn.
        max_length: of prompt and answer, in tokens; canaries leave room.
        run_config: the run's configuration, for the report; secrets are masked.

    Example::

        guard = Guard(config, log_dir=folder, tokenizer=tokenizer)
        metrics = guard.after_refit(
            step=3,
            generate=policy.generate,
            score=policy.get_logprobs,
            transferred=Transferred(version=3, sent=report.observed, engines=engines),
            resync=send_again,
        )
        outcome = guard.before_update(
            batch, step=4, score=policy.get_logprobs, resync=send_again
        )
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        log_dir: Path | str,
        precision: str = "float32",
        tokenizer: Any = None,
        vocab_size: int = 0,
        special_ids: Sequence[int] = (),
        max_length: int | None = None,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config
        self._tolerance = config.canary_tolerance or _TOLERANCE.get(
            precision, _TOLERANCE_ELSE
        )
        self._canaries: BatchedDataDict | None = None
        if config.canary_prompts and (tokenizer is not None or vocab_size):
            self._canaries = canary_batch(
                config.canary_prompts,
                config.canary_tokens,
                tokenizer=tokenizer,
                vocab_size=vocab_size,
                special_ids=special_ids,
                max_length=max_length,
            )
        self._earlier: deque[Transferred] = deque(maxlen=_REMEMBERED)
        self._rollouts = RolloutCheck(config.rollout_rows, config.max_mult_prob_error)
        self._reaction = Reaction(config.action, Path(log_dir), run_config or {})
        self._distrusted = False
        self._resyncs = 0

    def after_refit(
        self,
        *,
        step: int,
        generate: Generate,
        score: Score,
        transferred: Transferred | None = None,
        resync: Resync | None = None,
    ) -> dict[str, float]:
        """Check the generator after it was given weights.

        Args:
            step: of training, for the report.
            generate: prompts to answers, by the path that rollouts take.
            score: the trainer's log-probs.
            transferred: digests; None for a generator that gives none.
            resync: sends the weights once more; without it "resync" halts.

        Returns:
            ``guard/digest_tensors`` compared, ``guard/digest_uncovered`` that no rule
            reads, ``guard/digest_mismatches``, ``guard/canary_error_mean`` and
            ``_max``, ``guard/resyncs`` of the run, ``guard_s``.

        Raises:
            ConsistencyError: they differ, and are not to, or still do.
        """
        if not self.config.enabled:
            return {}
        begin = time.perf_counter()
        look = self._look(transferred, generate, score)
        metrics = _metrics(look)
        if look.findings:
            again = partial(self._again, resync, generate, score) if resync else None
            look = self._reaction.settle(step, look, again)
        self._remember(look.transferred)
        metrics["guard/resyncs"] = float(self._resyncs)
        metrics["guard_s"] = time.perf_counter() - begin
        return metrics

    def before_update(
        self,
        batch: BatchedDataDict,
        *,
        step: int,
        score: Score,
        version: int | None = None,
        generate: Generate | None = None,
        resync: Resync | None = None,
    ) -> GuardOutcome:
        """Check the responses of a rollout before they are learnt from.

        Args:
            batch: a rollout or train batch, see ``rollout_mismatch``.
            step: of training, for the report.
            score: the trainer's log-probs.
            version: of the trainer's weights; tokens of other weights are left out.
            generate: for canaries after the weights were sent again.
            resync: sends the weights once more; without it "resync" halts.

        Returns:
            ``guard/mult_prob_error``, ``guard/gen_kl``, ``guard/rollout_s``; and
            whether the batch may be used.

        Raises:
            ConsistencyError: they differ, and are not to, or do so twice in a row.
        """
        if not self.config.enabled or not self.config.rollout_rows:
            return GuardOutcome(metrics={})
        begin = time.perf_counter()
        findings, metrics = self._rollouts.run(batch, score, version)
        wrong = [finding for finding in findings if finding.kind != "rise"]
        usable = True
        if wrong:
            usable = self.config.action == "warn"
            again = None
            if resync is not None and not self._distrusted:
                again = partial(self._again, resync, generate, score)
            look = self._reaction.settle(step, Look(findings=findings), again, metrics)
            self._remember(look.transferred)
        elif findings:
            self._reaction.warn(step, Look(findings=findings), metrics)
        self._distrusted = not usable
        metrics["guard/rollout_s"] = time.perf_counter() - begin
        return GuardOutcome(metrics=metrics, usable=usable, findings=findings)

    def check_digests(
        self,
        sent: Mapping[str, int | Mapping[str, int]],
        engines: Sequence[EngineWeights],
        *,
        version: int = 0,
    ) -> list[Finding]:
        """Compare digests of what was sent with what each engine holds."""
        now = Transferred(version=version, sent=sent, engines=engines)
        return digest_findings(now, tuple(self._earlier))

    def check_canary(
        self, generate: Generate, score: Score
    ) -> tuple[list[Finding], list[CanaryAnswer]]:
        """Have the canaries answered and scored."""
        if self._canaries is None:
            return [], []
        try:
            answers = run_canary(self._canaries, generate, score)
        except WorkerError:
            raise
        except TrainingError as error:  # log-probs that are not finite, for one
            return [Finding(kind="not_finite", tensor="canary", detail=str(error))], []
        return canary_findings(answers, self._tolerance), answers

    def check_rollout(
        self, batch: BatchedDataDict, score: Score, *, version: int | None = None
    ) -> list[Finding]:
        """Compare a rollout's log-probs with the trainer's; counts as a step."""
        return self._rollouts.run(batch, score, version)[0]

    def report_to(self, log_dir: Path | str, run_config: Mapping[str, Any]) -> None:
        """Say where reports go, and the configuration that goes with them."""
        self._reaction.report_to(Path(log_dir), run_config)

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: the course of the error over the run."""
        return {"rollouts": self._rollouts.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._rollouts.load_state_dict(state["rollouts"])

    def _digests(self, transferred: Transferred | None) -> list[Finding]:
        if transferred is None or not self.config.digests:
            return []
        return self.check_digests(
            transferred.sent, transferred.engines, version=transferred.version
        )

    def _again(self, resync: Resync, generate: Generate | None, score: Score) -> Look:
        self._resyncs += 1
        return self._look(resync(), generate, score)

    def _look(
        self, transferred: Transferred | None, generate: Generate | None, score: Score
    ) -> Look:
        findings = self._digests(transferred)
        answers: list[CanaryAnswer] = []
        # An engine may not survive sampling with weights that are not finite.
        broken = any(finding.kind == "not_finite" for finding in findings)
        if generate is not None and not broken:
            found, answers = self.check_canary(generate, score)
            findings = findings + found
        return Look(findings=findings, transferred=transferred, canaries=answers)

    def _remember(self, transferred: Transferred | None) -> None:
        if transferred is not None:
            self._earlier.append(dataclasses.replace(transferred, engines=()))


def _metrics(look: Look) -> dict[str, float]:
    metrics = {}
    if look.transferred is not None:
        engines = look.transferred.engines
        compared = {name for engine in engines for name in engine.digests}
        uncovered = {name for engine in engines for name in engine.uncovered}
        wrong = [f for f in look.findings if f.kind not in ("canary",)]
        metrics["guard/digest_tensors"] = float(len(compared))
        metrics["guard/digest_uncovered"] = float(len(uncovered))
        metrics["guard/digest_mismatches"] = float(len(wrong))
    if look.canaries:
        means = [answer.errors.mean_error for answer in look.canaries]
        metrics["guard/canary_error_mean"] = sum(means) / len(means)
        metrics["guard/canary_error_max"] = max(
            answer.errors.max_error for answer in look.canaries
        )
    return metrics
