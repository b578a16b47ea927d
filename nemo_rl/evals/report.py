"""EvalResult, and what a person reads of it: a table, a page in Markdown, JSON.

Knows numbers, answers and paths; not where they come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_rl.evals.statistics import Estimate
from nemo_rl.infra.progress import shortened
from nemo_rl.utils.files import write_json, write_text

_WIDTH = 40
_EXAMPLES = 3
_LONGEST = 600
_METHODS = {
    "wilson": "Wilson's score interval over prompts",
    "bootstrap": "percentile bootstrap over prompts",
}


@dataclass(frozen=True)
class EvalResult:
    """What ``evaluate`` returns.

    Attributes:
        metrics: ``reward``, ``pass@k``, ``cons@k``: estimates over the prompts.
        facts: what was asked of what, name -> value.
        answers: one mapping per answer: idx, sample, prompt, response, answer,
            reward, right, vote, truncated, and the token ids.
        output: folder of answers.jsonl, summary.json and report.md; None: not written.
    """

    metrics: dict[str, Estimate]
    facts: dict[str, Any]
    answers: list[dict[str, Any]] = field(repr=False)
    output: Path | None = None

    def __getitem__(self, name: str) -> float:
        """The value of a metric: ``result["pass@1"]``."""
        return self.metrics[name].value


def write_report(result: EvalResult) -> None:
    """Write summary.json and report.md into the output folder.

    Raises:
        OSError: a file could not be written.
    """
    if result.output is None:
        return
    metrics = {name: asdict(value) for name, value in result.metrics.items()}
    write_json(
        result.output / "summary.json", {"facts": result.facts, "metrics": metrics}
    )
    write_text(result.output / "report.md", markdown(result))


def table(result: EvalResult) -> Any:
    """The numbers as a rich table."""
    from rich.table import Table

    percent = f"{100 * result.facts['confidence']:g} % interval"
    shown = Table(title=f"{result.facts['model']} on {result.facts['dataset']}")
    shown.add_column("metric")
    shown.add_column("value", justify="right")
    shown.add_column(percent)
    shown.add_column("method")
    for name, one in result.metrics.items():
        ends = f"{one.low:.4f} to {one.high:.4f}"
        shown.add_row(name, f"{one.value:.4f}", ends, one.method)
    return shown


def markdown(result: EvalResult) -> str:
    """The page: numbers, how many prompts got how many right answers, examples."""
    facts = result.facts
    lines = [f"# {facts['model']} on {facts['dataset']}", ""]
    lines += [f"| metric | value | {100 * facts['confidence']:g} % interval | |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {name} | {one.value:.4f} | {one.low:.4f} to {one.high:.4f} "
        f"| {_METHODS[one.method]} |"
        for name, one in result.metrics.items()
    ]
    lines += ["", *_histogram(result.answers, facts["num_samples"]), "", "## Asked", ""]
    lines += [
        f"- {name}: {value}" for name, value in facts.items() if value not in (None, {})
    ]
    lines += _examples(result.answers)
    return "\n".join(lines) + "\n"


def _histogram(answers: Sequence[Mapping[str, Any]], samples: int) -> list[str]:
    """A bar per number of right answers to a prompt."""
    right: Counter[int] = Counter()
    for row in answers:
        right[row["idx"]] += row["right"]
    prompts = Counter(right.values())
    most = max(prompts.values())
    bars = [
        f"{count:3d} right  {'#' * round(_WIDTH * prompts[count] / most):{_WIDTH}s}"
        f"  {prompts[count]}"
        for count in range(samples + 1)
    ]
    return ["Prompts by the number of right answers:", "", "```", *bars, "```"]


def _examples(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first right and the first wrong answers, of different prompts."""
    lines: list[str] = []
    for title, wanted in (("Right", True), ("Wrong", False)):
        first = {row["idx"]: row for row in reversed(answers) if row["right"] is wanted}
        for idx in sorted(first)[:_EXAMPLES]:
            row = first[idx]
            lines += ["", f"## {title}: row {idx}, answer {row['sample']}", ""]
            for name in ("prompt", "response", "answer", "reward"):
                if row.get(name) is not None:
                    text = shortened(str(row[name]), _LONGEST, keep_end=True)
                    lines.append(f"    {name:9s} {text}".rstrip())
    return lines
