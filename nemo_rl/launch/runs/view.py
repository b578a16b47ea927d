"""How runs look on a terminal: RunStates as rich renderables. Pure drawing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nemo_rl.infra.progress import duration, number, shortened, sparkline
from nemo_rl.launch.failure import Failure
from nemo_rl.launch.hostlist import compress
from nemo_rl.launch.runs.attempt import Attempt
from nemo_rl.launch.runs.state import RunState

STYLES = {
    "running": "bold green",
    "completing": "green",
    "configuring": "yellow",
    "waiting": "yellow",
    "done": "green",
    "failed": "bold red",
    "out of time": "red",
    "stopped": "yellow",
    "cancelled": "magenta",
    "unknown": "dim",
}
_LABEL = "dim"
_ATTEMPTS_SHOWN = 8
_WIDEST = 130
_NARROW = 120
_COLUMNS = ("nodes", "step", "left", "value", "tries", "age")
_LONGEST_STATE = max(map(len, STYLES))


def console() -> Console:
    """Return the terminal; a pipe gets the same text, 130 columns wide."""
    found = Console()
    return found if found.is_terminal else Console(width=_WIDEST)


def state_text(state: RunState) -> Text:
    """The state in its colour."""
    return Text(state.state, style=STYLES.get(state.state, "yellow"))


def draw_table(states: Sequence[RunState], width: int) -> RenderableType:
    """One line per run; a narrow terminal gets fewer columns, never half a name.

    Args:
        states: the runs.
        width: columns of the terminal.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=_LABEL)
    longest = max((len(state.run.label) for state in states), default=0)
    table.add_column("run", no_wrap=True, min_width=longest)
    table.add_column("state", no_wrap=True, min_width=_LONGEST_STATE)
    numbers = _COLUMNS if width >= _NARROW else _COLUMNS[:3]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for state in states:
        cells, why = _cells(state), state.why if width >= _NARROW else state.brief
        table.add_row(
            state.run.label,
            state_text(state),
            *(cells[name] for name in numbers),
            Text(shortened(why, 60), style=_LABEL),
        )
    return table


def _cells(state: RunState) -> dict[str, str]:
    run, training = state.run, state.run.training
    count = (state.job.num_nodes if state.job else None) or run.facts.get("nodes")
    headline = ""
    if training is not None and training.headline:
        headline = f"{training.headline} {number(training.value)}"
    return {
        "nodes": "" if count is None else str(count),
        "step": _steps(state),
        "left": "" if state.left_s is None else duration(state.left_s),
        "value": headline,
        "tries": str(len(run.attempts) or ""),
        "age": ago(state.submitted_at, suffix=""),
    }


def draw_run(state: RunState) -> RenderableType:
    """All there is to say of one run."""
    run, job = state.run, state.job
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_LABEL, no_wrap=True)
    table.add_column(overflow="fold")
    line = state_text(state)
    if state.why:
        line.append(f"   {state.why}", style="default")
    table.add_row("state", line)
    if job is not None and job.is_waiting:
        table.add_row("starts", _start(state))
    if job is not None:
        table.add_row("job", _job(state))
    if state.left_s is not None:
        table.add_row("time left", duration(state.left_s))
    for label, value in _training(state):
        table.add_row(label, value)
    path, saved_at = run.checkpoint
    if path:
        table.add_row("checkpoint", f"{relative(path, run.path)}  {ago(saved_at)}")
    table.add_row("log", str(run.log))
    parts: list[RenderableType] = [table]
    if run.attempts:
        parts.append(draw_attempts(run.attempts, state.outcome))
        failure = run.attempts[-1].failure
        if failure is not None:
            parts.append(draw_failure(failure))
    if len(state.run.job_ids) > 1:
        numbers = ", ".join(map(str, run.job_ids))
        parts.append(Text(f"jobs of this run: {numbers}", style=_LABEL))
    colour = STYLES.get(state.state, "yellow").replace("bold ", "")
    return Panel(
        Group(*parts),
        title=Text(run.label, style="bold"),
        title_align="left",
        border_style=colour,
        box=box.ROUNDED,
        padding=(0, 1),
    )


def draw_attempts(
    attempts: Sequence[Attempt], outcome: Callable[[Attempt], str]
) -> RenderableType:
    """The latest attempts, one per line, and how each ended."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style=_LABEL)
    table.add_column("attempt", no_wrap=True)
    table.add_column("nodes", overflow="ellipsis", no_wrap=True, max_width=24)
    table.add_column("ran", justify="right", no_wrap=True)
    table.add_column("exit", justify="right", no_wrap=True)
    table.add_column("how it ended", overflow="fold")
    hidden = len(attempts) - _ATTEMPTS_SHOWN
    if hidden > 0:
        table.add_row("...", "", "", "", f"{hidden} earlier ones")
    for attempt in attempts[-_ATTEMPTS_SHOWN:]:
        code = attempt.exit_code
        table.add_row(
            attempt.label,
            nodes_text(attempt.nodes),
            duration(attempt.elapsed_s),
            "-" if code is None else str(code),
            Text(outcome(attempt), style=_outcome_style(attempt)),
        )
    return table


def draw_failure(failure: Failure) -> RenderableType:
    """Why the last attempt failed, and what to do."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style=_LABEL, no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "failed": Text(failure.summary, style="red"),
        "cause": failure.cause,
        "told by": failure.evidence,
        "to do": failure.cure,
        "its logs": failure.logs,
    }
    for label, text in rows.items():
        if text:
            table.add_row(label, text)
    return table


def nodes_text(names: Sequence[str]) -> str:
    """Node names, compressed."""
    return compress(names) if names else "-"


def ago(moment: float | None, *, suffix: str = " ago") -> str:
    """How long since a moment, roughly: 3 min ago."""
    if moment is None:
        return "-"
    seconds = max(0.0, time.time() - moment)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}{suffix}"
    return f"{seconds:.0f} s{suffix}"


def _steps(state: RunState) -> str:
    training = state.run.training
    if training is None:
        return ""
    total = f"/{training.total_steps}" if training.total_steps else ""
    return f"{training.step}{total}"


def _start(state: RunState) -> str:
    start = state.job.started if state.job else None
    if start is None:
        return "SLURM gives no estimate yet"
    seconds = start.timestamp() - time.time()
    when = f"in {duration(seconds)}" if seconds > 0 else "any moment"
    return f"{when} (SLURM's estimate: {start:%Y-%m-%d %H:%M:%S})"


def _job(state: RunState) -> str:
    job = state.job
    if job is None:
        return ""
    words = [str(job.job_id)]
    if job.num_nodes:
        words.append(f"{job.num_nodes} node{'s' if job.num_nodes > 1 else ''}")
    if job.nodes:
        words.append(shortened(job.nodes, 40))
    if job.partition:
        words.append(f"partition {job.partition}")
    if job.dependency:
        words.append(f"after {job.dependency}")
    return ", ".join(words)


def _training(state: RunState) -> list[tuple[str, RenderableType]]:
    run, training = state.run, state.run.training
    if training is None:
        return []
    steps = Text(f"step {_steps(state)}")
    if training.total_steps:
        steps.append(f"  {training.step / training.total_steps:.0%}")
    if training.step_s:
        steps.append(f"   {number(training.step_s)} s a step", style=_LABEL)
    if training.at:
        steps.append(f"   last one {ago(training.at)}", style=_LABEL)
    rows: list[tuple[str, RenderableType]] = [("progress", steps)]
    if state.state in ("running", "waiting") and training.left_s is not None:
        left = Text(duration(training.left_s))
        if state.left_s is not None and training.left_s > state.left_s:
            left.append("  more than the allocation has left: it will go on after a")
            left.append(" requeue")
        rows.append(("to the end", left))
    name, values = run.curve()
    if values:
        curve = Text(f"{number(values[-1])}  ", style="bold")
        curve.append(sparkline(values, 36), style="cyan")
        curve.append(f"  {number(min(values))} to {number(max(values))}", style=_LABEL)
        rows.append((name, curve))
    return rows


def relative(path: str, folder: Path) -> str:
    """A path as seen from a folder, or as it is where it lies elsewhere."""
    inside = bool(path) and Path(path).is_relative_to(folder)
    return str(Path(path).relative_to(folder)) if inside else path


def _outcome_style(attempt: Attempt) -> str:
    if attempt.failure or attempt.exit_code not in (None, 0, 75):
        return "red"
    return "green" if attempt.exit_code == 0 else "default"
