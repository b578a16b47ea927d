"""How a run looks: Progress and RunSummary as rich renderables. Pure drawing."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nemo_rl.infra.progress import (
    ASCII_BLOCKS,
    BLOCKS,
    Progress,
    RunSummary,
    SampleChange,
    duration,
    number,
    shortened,
    sparkline,
)

_LABEL = "dim"
_WIDEST = 120

_CELLS = (
    ("length", "response length"),
    ("kl", "KL"),
    ("accuracy", "accuracy"),
    ("margin", "margin"),
    ("loss", "loss"),
    ("grad_norm", "grad norm"),
    ("tokens_per_s", "tokens/s"),
    ("step_s", "s/step"),
)


def draw_progress(state: Progress, width: int, unicode: bool = True) -> RenderableType:
    """The live panel.

    Args:
        state: what is known.
        width: columns of the terminal; the panel is at most 120 wide.
        unicode: False draws with ASCII only.
    """
    width = min(width, _WIDEST)
    inner = width - 4
    rows: list[RenderableType] = []
    if state.facts:
        rows += _facts(state, inner)
        rows.append(Text(""))
    rows.append(_steps(state, inner, unicode))
    rows.append(_times(state))
    rows.append(Text(""))
    rows.append(_headline(state, inner, unicode))
    rows.append(_cells(state, columns=3 if inner >= 70 else 2))
    if state.validations:
        rows.append(_validation(state, inner, unicode))
    return Panel(
        Group(*rows),
        title=Text(shortened(state.title, inner - 4), style="bold"),
        title_align="left",
        border_style="cyan",
        box=box.ROUNDED if unicode else box.ASCII,
        padding=(0, 1),
        width=width,
    )


def draw_summary(
    summary: RunSummary, width: int, unicode: bool = True
) -> RenderableType:
    """The result: before and after, and some answers side by side."""
    width = min(width, _WIDEST)
    inner = width - 4
    rows: list[RenderableType] = []
    if summary.after is not None:
        rows.append(_before_after(summary, inner, unicode))
        rows.append(Text(""))
    if summary.samples:
        rows.append(_samples(summary, inner, unicode))
    done = summary.status == "completed"
    title = Text.assemble(
        (summary.status, "bold green" if done else "bold yellow"),
        (f"  {summary.steps} steps in {duration(summary.elapsed_s)}", "bold"),
    )
    return Panel(
        Group(*rows),
        title=title,
        title_align="left",
        border_style="green" if done else "yellow",
        box=box.ROUNDED if unicode else box.ASCII,
        padding=(0, 1),
        width=width,
    )


def path_lines(summary: RunSummary) -> list[Text]:
    """Where things are, one line per path that there is."""
    paths = {label: path for label, path in summary.paths.items() if path is not None}
    longest = max((len(label) for label in paths), default=0)
    return [
        Text.assemble((f"  {label:<{longest}}  ", _LABEL), str(path))
        for label, path in paths.items()
    ]


def _facts(state: Progress, width: int) -> list[Text]:
    """As many facts in a line as fit; a line breaks between facts only."""
    lines = [Text()]
    for label, value in state.facts.items():
        fact = Text.assemble((f"{label} ", _LABEL), value)
        if lines[-1].cell_len and lines[-1].cell_len + fact.cell_len + 3 > width:
            lines.append(Text())
        if lines[-1].cell_len:
            lines[-1].append("   ")
        lines[-1].append(fact)
    return lines


def _steps(state: Progress, width: int, unicode: bool) -> Text:
    total = str(state.total_steps) if state.total_steps else "?"
    label = f"step {state.step}/{total}"
    share = f"{state.fraction:4.0%}" if state.total_steps else ""
    bar = _bar(state.fraction, width - len(label) - len(share) - 3, "cyan", unicode)
    return Text.assemble((label, "bold"), "  ", bar, " ", share)


def _times(state: Progress) -> Text:
    line = Text.assemble(
        ("elapsed ", _LABEL),
        duration(state.elapsed_s),
        ("   left ", _LABEL),
        duration(state.left_s),
    )
    if state.phase:
        line.append(f"   {state.phase}", style="italic cyan")
    return line


def _headline(state: Progress, width: int, unicode: bool) -> Text:
    name, value = state.headline, number(state.values.get(state.headline))
    label = Text.assemble((f"{name} ", "bold"), (f"{value:<8}", "bold green"))
    if not state.history:
        return label
    blocks = BLOCKS if unicode else ASCII_BLOCKS
    low, high = number(min(state.history)), number(max(state.history))
    room = width - label.cell_len - len(low) - len(high) - 2
    line = sparkline(state.history, min(room, 72), blocks)
    return Text.assemble(
        label, (low, _LABEL), " ", (line, "green"), " ", (high, _LABEL)
    )


def _cells(state: Progress, columns: int) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    for _ in range(columns):
        grid.add_column(style=_LABEL, no_wrap=True, ratio=3)
        grid.add_column(no_wrap=True, ratio=2)
    cells = [
        text
        for name, label in _CELLS
        if name in state.values and name != state.headline
        for text in (label, number(state.values[name]))
    ]
    for start in range(0, len(cells), 2 * columns):
        grid.add_row(*cells[start : start + 2 * columns])
    return grid


def _validation(state: Progress, width: int, unicode: bool) -> Text:
    step, name, value = state.validations[-1]
    line = Text.assemble(
        ("validation ", "bold"), f"{name} ", (number(value), "bold magenta")
    )
    line.append(f" at step {step}", style=_LABEL)
    if len(state.validations) > 1:
        first_step, _, first = state.validations[0]
        line.append(f"   was {number(first)} at step {first_step}", style=_LABEL)
        room = width - line.cell_len - 3
        blocks = BLOCKS if unicode else ASCII_BLOCKS
        history = [value for _, _, value in state.validations]
        line.append("   " + sparkline(history, min(room, 24), blocks), style="magenta")
    return line


def _before_after(summary: RunSummary, width: int, unicode: bool) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bold")
    grid.add_column(style=_LABEL)
    grid.add_column(justify="right", style="bold")
    grid.add_column()
    room = max(10, min(50, width - len(summary.metric) - 24))
    values = [("before", summary.before, "yellow"), ("after", summary.after, "green")]
    shown = [row for row in values if row[1] is not None]
    for index, (label, value, style) in enumerate(shown):
        share = value if value is not None and 0 <= value <= 1 else None
        bar = _bar(share, room, style, unicode) if share is not None else Text("")
        name = summary.metric if index == 0 else ""
        grid.add_row(name, label, Text(number(value), style=style), bar)
    return grid


def _samples(summary: RunSummary, width: int, unicode: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if unicode else box.ASCII,
        width=width,
        padding=(0, 1),
        show_edge=False,
        header_style=_LABEL,
    )
    limit = 3 * ((width - 20) // 3 - 6)  # about three lines of a column
    table.add_column("prompt", ratio=1, overflow="fold")
    with_answer = any(sample.answer is not None for sample in summary.samples)
    if with_answer:
        table.add_column("answer", max_width=16, overflow="fold")
    table.add_column("before", ratio=1, overflow="fold")
    table.add_column("after", ratio=1, overflow="fold")
    for sample in summary.samples:
        answer = [shortened(sample.answer or "", 48)] if with_answer else []
        table.add_row(
            Text(shortened(sample.prompt, limit, keep_end=True)),
            *(Text(text) for text in answer),
            _response(sample, before=True, limit=limit, unicode=unicode),
            _response(sample, before=False, limit=limit, unicode=unicode),
        )
    return table


def _response(sample: SampleChange, *, before: bool, limit: int, unicode: bool) -> Text:
    response = sample.before if before else sample.after
    reward = sample.before_reward if before else sample.after_reward
    text = shortened(response, limit) or "(empty)"
    if reward is None:
        return Text(text)
    good = reward > 0
    marks = ("✓", "✗") if unicode else ("+", "-")
    style = "green" if good else "red"
    return Text.assemble((f"{marks[0] if good else marks[1]} ", style), text)


def _bar(fraction: float, width: int, style: str, unicode: bool) -> Text:
    width = max(4, width)
    full = round(fraction * width)
    filled, empty = ("━", "━") if unicode else ("#", ".")
    return Text.assemble((filled * full, style), (empty * (width - full), "grey37"))
