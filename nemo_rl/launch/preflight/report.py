"""Findings as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence

from nemo_rl.launch.preflight.checks import FAIL, SKIPPED, USER, Check, Finding

SIGNS = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skipped": "-"}


def table(findings: Sequence[Finding], *, width: int | None = None) -> str:
    """Return check, verdict, measured and limit in columns; a cure below its line.

    Args:
        findings: in order.
        width: characters of a line; the terminal's by default.
    """
    width = width or min(shutil.get_terminal_size((100, 20)).columns, 120)
    first = max([len("check"), *(len(f.name) for f in findings)]) + 2
    third = max(20, (width - first - 9) * 2 // 3)
    lines = [f"{'check':{first}}{'verdict':9}{'measured':{third}}limit"]
    for found in findings:
        measured = textwrap.wrap(found.measured, third - 2) or [""]
        limits = textwrap.wrap(found.limit, max(12, width - first - 9 - third)) or [""]
        left = f"{found.name:{first}}{SIGNS[found.verdict]:9}"
        for number in range(max(len(measured), len(limits))):
            one = measured[number] if number < len(measured) else ""
            two = limits[number] if number < len(limits) else ""
            lines.append(f"{left if number == 0 else '':{first + 9}}{one:{third}}{two}")
        if found.cure:
            cure = textwrap.wrap(f"-> {found.cure}", width - first - 9)
            lines += [" " * (first + 9) + line for line in cure]
    return "\n".join(line.rstrip() for line in lines)


def as_json(findings: Sequence[Finding], checks: Sequence[Check]) -> str:
    """Return a list of findings with why each was asked."""
    why = {check.name: check.why for check in checks}
    found = [{**one.to_dict(), "why": why.get(one.name, "")} for one in findings]
    return json.dumps(found, indent=2)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 0 if nothing failed, 2 for a user's mistake, 1 for a machine's fault."""
    failed = [found for found in findings if found.verdict == FAIL]
    if any(found.blame == USER for found in failed):
        return 2
    return 1 if failed else 0


def summary(findings: Sequence[Finding], left: Sequence[str]) -> str:
    """Return how many passed, and what was not looked at here."""
    counts = {
        verdict: sum(found.verdict == verdict for found in findings)
        for verdict in ("ok", "warn", "fail", SKIPPED)
    }
    text = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    if left:
        text += (
            f"\nOnly a compute node can tell: {', '.join(left)}. The job looks at "
            "them first thing."
        )
    return text
