"""What this user's runs are doing, or one run in full.

{prog}                  the newest runs of this checkout
{prog} 4711 --watch     one run, drawn anew every 10 seconds until it has ended
{prog} 4711 --json      for programs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from nemo_rl.launch.runs import cli, view
from nemo_rl.launch.runs.find import all_runs
from nemo_rl.launch.runs.state import FINAL, RunState, look
from nemo_rl.launch.scheduler import Scheduler

SHORTEST_WATCH_S = 2.0


def main(argv: Sequence[str] | None = None, program: str = "nemo-rl status") -> int:
    """Command line: [RUN] [--json] [--watch [SECONDS]] [--limit N] [--no-slurm]."""
    parser = cli.make_parser(program, __doc__, run="?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="again every SECONDS (10)",
    )
    parser.add_argument("--limit", type=int, default=20, help="runs in the table (20)")
    parser.add_argument(
        "--no-slurm", action="store_true", help="ask nobody; read files only"
    )
    options = cli.parsed(parser, argv)
    return cli.guarded(lambda: _run(options), options)


def _run(options: argparse.Namespace) -> int:
    scheduler = cli.scheduler_or_none(wanted=not options.no_slurm)
    if scheduler is None and not options.no_slurm:
        print("SLURM is not installed here: the files alone speak", file=sys.stderr)
    if options.watch is None or options.json:
        states = _look(options, scheduler)
        if options.json:
            found = [state.as_json() for state in states]
            print(json.dumps(found[0] if options.run else found, indent=2))
        else:
            view.console().print(_drawn(options, states))
        return 0
    with suppress(KeyboardInterrupt):
        _watch(options, scheduler, max(SHORTEST_WATCH_S, options.watch))
    return 0


def _watch(
    options: argparse.Namespace, scheduler: Scheduler | None, pause_s: float
) -> None:
    with Live(console=view.console(), auto_refresh=False) as live:
        while True:
            states = _look(options, scheduler)
            live.update(_drawn(options, states), refresh=True)
            if options.run and states[0].state in FINAL:
                return
            time.sleep(pause_s)


def _look(options: argparse.Namespace, scheduler: Scheduler | None) -> list[RunState]:
    if options.run:
        return look([cli.run_of(options)], scheduler)
    root = cli.root_of(options)
    return look(all_runs(root)[: options.limit], scheduler, root=root)


def _drawn(options: argparse.Namespace, states: list[RunState]) -> RenderableType:
    if options.run:
        return view.draw_run(states[0])
    if not states:
        return Text(f"no runs below {cli.root_of(options) / 'results'}")
    return view.draw_table(states, view.console().width)
