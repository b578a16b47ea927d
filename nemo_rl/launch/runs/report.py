"""One page on a run: what was asked for, how it went, what failed, what it cost.

{prog} 4711                       on the terminal
{prog} 4711 --output report.md    as Markdown
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.markdown import Markdown

from nemo_rl.api.functional import algorithm_of, config_class
from nemo_rl.infra.progress import duration, number, sparkline
from nemo_rl.launch import driver, timeline
from nemo_rl.launch.runs import cli, view
from nemo_rl.launch.runs.attempt import Attempt
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.launch.runs.logs import attempt_lines
from nemo_rl.launch.runs.state import RunState, look
from nemo_rl.utils.exceptions import ConfigurationError, LaunchError
from nemo_rl.utils.files import write_text
from nemo_rl.utils.secrets import masked

LOG_LINES = 20
_CURVE_WIDTH = 60
_ABSENT = ...


def main(argv: Sequence[str] | None = None, program: str = "nemo-rl report") -> int:
    """Command line: RUN [--output FILE] [--no-slurm]."""
    parser = cli.make_parser(program, __doc__)
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        metavar="FILE.md",
        help="write it there, as Markdown",
    )
    parser.add_argument(
        "--no-slurm", action="store_true", help="ask nobody; read files only"
    )
    options = cli.parsed(parser, argv)
    return cli.guarded(lambda: _run(options), options)


def _run(options: argparse.Namespace) -> int:
    run = cli.run_of(options)
    scheduler = cli.scheduler_or_none(wanted=not options.no_slurm)
    text = render(look([run], scheduler)[0])
    if options.output is None:
        view.console().print(Markdown(text))
        return 0
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, text)
    except OSError as error:
        raise LaunchError(f"{options.output} cannot be written: {error}") from error
    print(options.output)
    return 0


def render(state: RunState) -> str:
    """Return the page in Markdown."""
    run = state.run
    why = f": {state.why}" if state.why else ""
    parts = [f"# {run.label}", f"**{state.state}**{why}"]
    parts.append(_table(["what", "value"], _facts(state)))
    parts += _results(run)
    parts += ["## Attempts", _attempts(state)]
    parts += _bring_up(run)
    parts += _failures(run)
    parts += ["## Configuration", _configuration(run)]
    return "\n\n".join(parts) + "\n"


def differences(config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, value, default) of what differs from the algorithm's defaults.

    The default of a key that has none is `...`.

    Args:
        config: a whole configuration, as in resolved.yaml.

    Raises:
        ConfigurationError: it is of no algorithm of this version.
    """
    algorithm = algorithm_of(config)
    model = (config.get("policy") or {}).get("model_name", "")
    least = {"algorithm": algorithm, "policy": {"model_name": model}}
    defaults = config_class(algorithm).from_mapping(least).to_dict()
    ours, theirs = _flat(masked(config)), _flat(defaults)
    # The model has no default; the folders are the run's own.
    theirs["policy.model_name"] = _ABSENT
    folders = {f"{section}.{key}" for section, key in driver.PLACES}
    return [
        (key, value, theirs.get(key, _ABSENT))
        for key, value in ours.items()
        if theirs.get(key, _ABSENT) != value and key not in folders
    ]


def _facts(state: RunState) -> list[tuple[str, str]]:
    run, facts = state.run, state.run.facts
    commit = str(facts.get("commit") or "")[:12]
    hours = run.node_hours()
    gpus = max((a.facts.get("num_gpus", 0) for a in run.attempts), default=0)
    rows = {
        "recipe": facts.get("recipe"),
        "overrides": " ".join(facts.get("overrides") or []),
        "site": facts.get("site"),
        "nodes": facts.get("nodes"),
        "jobs": ", ".join(map(str, run.job_ids)),
        "submitted": _when(run.submitted_at),
        "commit": f"{commit} (with changes)" if facts.get("modified") else commit,
        "image": facts.get("container"),
        "image bytes": facts.get("image_bytes"),
        "image sha256": facts.get("image_sha256"),
        "node-hours": None if hours is None else f"{hours:.2f}",
        "GPU-hours": f"{hours * gpus:.2f}" if hours and gpus else None,
        "checkpoint": view.relative(run.checkpoint[0], run.path),
        "folder": str(run.path),
    }
    return [(label, str(value)) for label, value in rows.items() if value]


def _results(run: RunFolder) -> list[str]:
    training = run.training
    name, values = run.curve()
    if training is None or not values:
        return []
    total = f" of {training.total_steps}" if training.total_steps else ""
    shown = ("reward", "loss", "accuracy", "length", "kl", "grad_norm", "tokens_per_s")
    rows = [(n, number(training.values[n])) for n in shown if n in training.values]
    speed = f", {number(training.step_s)} s a step" if training.step_s else ""
    return [
        "## Training",
        f"Step {training.step}{total}{speed}. {name.capitalize()} from "
        f"{number(values[0])} to {number(values[-1])} (lowest {number(min(values))}, "
        f"highest {number(max(values))}):",
        f"```text\n{sparkline(values, _CURVE_WIDTH)}\n```",
        _table(["last step", "value"], rows),
    ]


def _attempts(state: RunState) -> str:
    run = state.run
    if not run.attempts:
        return "None began."
    rows = [
        (
            attempt.label,
            view.nodes_text(attempt.nodes),
            _when(attempt.started_at),
            duration(attempt.elapsed_s),
            "-" if attempt.exit_code is None else str(attempt.exit_code),
            state.outcome(attempt),
        )
        for attempt in run.attempts
    ]
    names = ["attempt", "nodes", "began", "ran", "exit code", "how it ended"]
    return _table(names, rows)


def _bring_up(run: RunFolder) -> list[str]:
    """When the newest attempt reached what."""
    if not run.attempts:
        return []
    rows = [
        (f"{at:.1f}", f"{took:.1f}", one.meaning, one.node or "-")
        for one, at, took in timeline.intervals(timeline.read(run.attempts[-1].folder))
    ]
    names = ["s since it began", "s of this phase", "reached", "last by"]
    title = "## Start and end of the newest attempt"
    return [title, _table(names, rows)] if rows else []


def _failures(run: RunFolder) -> list[str]:
    parts = []
    for attempt in run.attempts:
        failed = attempt.failure or attempt.exit_code not in (None, 0, 75)
        if failed:
            parts.append(f"### Attempt {attempt.label}")
            told = attempt.failure.block() if attempt.failure else attempt.outcome
            parts.append(_fenced(told))
            if lines := _last_words(run, attempt):
                parts.append(f"Last lines of its log:\n\n{_fenced(lines)}")
    return ["## Failures", *parts] if parts else []


def _last_words(run: RunFolder, attempt: Attempt) -> str:
    if not run.log.exists():
        return ""
    return "".join(deque(attempt_lines(run.log, attempt), LOG_LINES))


def _configuration(run: RunFolder) -> str:
    if not run.config:
        return "The run wrote no resolved.yaml: training did not begin."
    try:
        found = differences(run.config)
    except ConfigurationError as error:
        return f"Not compared with the defaults: {error}"
    rows = [(key, _value(value), _value(default)) for key, value, default in found]
    return _table(["differs from the default", "value", "default"], rows)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _fenced(text: str) -> str:
    """A text that may hold fences itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _value(value: Any) -> str:
    if value is _ABSENT:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _when(moment: float | None) -> str:
    if moment is None:
        return "-"
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")
