"""What follows from findings: a report, and a warning, a second transfer or a halt.

Knows no engine; the second transfer is a callable.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rl.models.policy.canary import CanaryAnswer
from nemo_rl.models.policy.guard_findings import Finding, Transferred, causes
from nemo_rl.models.policy.guard_report import Evidence, write_bundle
from nemo_rl.utils.exceptions import ConsistencyError

log = logging.getLogger(__name__)

_MOST_WARNINGS = 10
"""Folders that a run which goes on may write."""
_NAMED = 3
"""Findings that the message names."""
_HALTED = "the run was halted"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """One look at the generator.

    Attributes:
        findings: what is not as it should be; empty where all is.
        transferred: digests; None where there were none.
        canaries: answers.
    """

    findings: list[Finding]
    transferred: Transferred | None = None
    canaries: list[CanaryAnswer] = dataclasses.field(default_factory=list)


class Reaction:
    """Does what ``policy.generation.guard.action`` says.

    Args:
        action: ``"warn"``, ``"resync"`` or ``"halt"``.
        log_dir: of the run.
        run_config: for the report.
    """

    def __init__(
        self, action: str, log_dir: Path, run_config: Mapping[str, Any]
    ) -> None:
        self._action, self._log_dir, self._run_config = action, log_dir, run_config
        self._written = 0

    def report_to(self, log_dir: Path, run_config: Mapping[str, Any]) -> None:
        """Write reports there from now on, with this configuration."""
        self._log_dir, self._run_config = log_dir, run_config

    def settle(
        self,
        step: int,
        look: Look,
        again: Callable[[], Look] | None,
        measured: Mapping[str, float] | None = None,
    ) -> Look:
        """Write a report, then warn, send the weights once more or halt.

        Args:
            step: of training.
            look: with findings.
            again: sends the weights once more and looks again; None: cannot be.
            measured: numbers for the report.

        Returns:
            The look that is true afterwards.

        Raises:
            ConsistencyError: halted.
        """
        action = self._action
        if action == "warn":
            self.warn(step, look, measured)
            return look
        if action == "resync" and again is not None:
            self._write(step, look, "the weights were sent once more", measured)
            look = again()
            if not look.findings:
                log.warning("step %d: after that, generator and trainer agree", step)
                return look
            measured = None
        raise ConsistencyError(self._write(step, look, _HALTED, measured))

    def warn(
        self, step: int, look: Look, measured: Mapping[str, float] | None = None
    ) -> None:
        """Write a report and go on."""
        self._write(step, look, "a warning", measured)

    def _write(
        self,
        step: int,
        look: Look,
        action: str,
        measured: Mapping[str, float] | None,
    ) -> str:
        """Write the report; the message that goes with it."""
        message = _message(step, look.findings)
        final = action == _HALTED
        self._written += 1
        if final or self._written <= _MOST_WARNINGS:
            folder = write_bundle(
                self._log_dir,
                Evidence(
                    step=step,
                    action=action,
                    findings=look.findings,
                    transferred=look.transferred,
                    canaries=look.canaries,
                    config=self._run_config,
                    measured=measured or {},
                ),
            )
            message += f" Report: {folder}"
        if not final:
            log.warning("%s (%s)", message, action)
        return message


def _message(step: int, findings: Sequence[Finding]) -> str:
    named = "; ".join(str(finding) for finding in findings[:_NAMED])
    more = f"; and {len(findings) - _NAMED} more" if len(findings) > _NAMED else ""
    return (
        f"step {step}: generator and trainer disagree. {named}{more}. "
        f"{causes(findings)[0]}"
    )
