"""The folder that the guard leaves behind: what differed, why, with which recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.infra.logging import masked
from nemo_rl.models.policy.canary import CanaryAnswer
from nemo_rl.models.policy.guard_findings import Finding, Transferred, causes
from nemo_rl.utils.publish import publish_folder

_SHOWN = 30
"""Findings listed in the report; all are in tensors.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the guard has seen when it found something.

    Attributes:
        step: of training.
        action: what was done.
        findings: what differs.
        transferred: digests; None where there were none.
        canaries: answers; empty where there were none.
        config: of the run.
        measured: numbers of the check.
    """

    step: int
    action: str
    findings: Sequence[Finding]
    transferred: Transferred | None = None
    canaries: Sequence[CanaryAnswer] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)


def write_bundle(log_dir: Path, evidence: Evidence) -> Path:
    """Write report.md, config.yaml, tensors.json and canary.json into a new folder.

    Args:
        log_dir: of the run; the folder is ``guard/step_000012`` below it, or
            ``step_000012_2`` where that is taken.
        evidence: what was seen.

    Returns:
        The folder; it appears whole or not at all.

    Raises:
        CheckpointError: it could not be written.
    """
    parent = log_dir / "guard"
    parent.mkdir(parents=True, exist_ok=True)
    number, final = 1, parent / f"step_{evidence.step:06d}"
    while final.exists():
        number += 1
        final = parent / f"step_{evidence.step:06d}_{number}"

    def write(folder: Path) -> None:
        config = yaml.safe_dump(_plain(masked(evidence.config)), sort_keys=False)
        (folder / "report.md").write_text(report(evidence), encoding="utf-8")
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        _write_json(folder / "tensors.json", _tensors(evidence))
        _write_json(
            folder / "canary.json",
            [dataclasses.asdict(answer) for answer in evidence.canaries],
        )

    return publish_folder(final, write)


def report(evidence: Evidence) -> str:
    """The report as Markdown."""
    lines = [
        f"# Generator and trainer disagree at step {evidence.step}",
        "",
        f"What was done: {evidence.action}.",
        "",
        "## What differs",
        "",
        "| what | tensor | engine | detail |",
        "|---|---|---|---|",
    ]
    for finding in evidence.findings[:_SHOWN]:
        engine = "" if finding.engine is None else str(finding.engine)
        name = f"`{finding.tensor}`" if finding.tensor else ""
        lines.append(f"| {finding.kind} | {name} | {engine} | {finding.detail} |")
    if len(evidence.findings) > _SHOWN:
        more = len(evidence.findings) - _SHOWN
        lines.append(f"| ... | {more} more in tensors.json | | |")
    lines += ["", "## Likely cause, and what to do", ""]
    lines += [f"- {text}" for text in causes(evidence.findings)]
    if evidence.transferred is not None:
        lines += ["", "## Weights", "", *_summary(evidence.transferred)]
    if evidence.measured:
        lines += ["", "## Numbers", ""]
        lines += [f"- {name}: {v:.6g}" for name, v in evidence.measured.items()]
    if evidence.canaries:
        lines += ["", "## Canaries", "", *_canary_tables(evidence.canaries)]
    return "\n".join(lines) + "\n"


def _summary(transferred: Transferred) -> list[str]:
    lines = [f"- version {transferred.version}, {len(transferred.sent)} tensors sent"]
    for number, engine in enumerate(transferred.engines):
        lines.append(
            f"- engine {number}: {len(engine.digests)} tensors compared, "
            f"{len(engine.uncovered)} that no rule can read"
        )
        lines += [f"  - `{n}`: {why}" for n, why in list(engine.uncovered.items())[:5]]
    return lines


def _canary_tables(canaries: Sequence[CanaryAnswer]) -> list[str]:
    lines = []
    for number, answer in enumerate(canaries):
        errors = answer.errors
        lines += [
            f"Canary {number}: mean {errors.mean_error:.3g}, largest "
            f"{errors.max_error:.3g}, prompt {answer.prompt_ids}",
            "",
            "| token | generator | trainer | difference |",
            "|---|---|---|---|",
        ]
        rows = zip(answer.token_ids, answer.generator, answer.trainer, strict=True)
        lines += [
            f"| {token} | {ours:.5f} | {theirs:.5f} | {theirs - ours:+.5f} |"
            for token, ours, theirs in rows
        ]
        lines.append("")
    return lines


def _tensors(evidence: Evidence) -> dict[str, Any]:
    transferred = evidence.transferred
    content: dict[str, Any] = {
        "findings": [dataclasses.asdict(finding) for finding in evidence.findings]
    }
    if transferred is not None:
        content["version"] = transferred.version
        content["sent"] = {
            name: _hex(value) for name, value in transferred.sent.items()
        }
        content["engines"] = [
            {**dataclasses.asdict(engine), "digests": _hex(engine.digests)}
            for engine in transferred.engines
        ]
    return content


def _hex(value: Any) -> Any:
    """Digests as text: JSON's numbers lose bits in many readers."""
    if isinstance(value, Mapping):
        return {name: _hex(inner) for name, inner in value.items()}
    return f"{value:016x}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return (
        value
        if isinstance(value, str | int | float | bool | type(None))
        else str(value)
    )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
