"""RichConsole: the live panel on a terminal; it owns the screen and gives it back.

Imported by `console.make_console` only where rich is installed.
"""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live

from nemo_rl.infra.console_view import draw_progress, draw_summary, path_lines
from nemo_rl.infra.progress import Progress, RunSummary


class RichConsole:
    """A live panel at the bottom of the terminal; messages scroll above it.

    Everything printed or logged meanwhile, also by handlers that hold the original
    stderr, is led through the panel's console, so that lines do not tear it.

    Args:
        stream: a terminal; standard output if None.
        width: columns; the terminal's if None.
    """

    def __init__(self, stream: TextIO | None = None, width: int | None = None) -> None:
        """Draw nothing yet."""
        self._terminal = Terminal(
            file=stream,
            width=width,
            force_terminal=True if stream is not None else None,
            highlight=False,
        )
        self._progress = Progress("", None)
        self._live: Live | None = None
        self._moved: list[tuple[logging.StreamHandler, TextIO]] = []

    def start(
        self, title: str, total_steps: int | None, facts: Mapping[str, Any]
    ) -> None:
        """Open the panel."""
        self.stop()
        self._progress = Progress(title, total_steps, facts)
        originals = (sys.stdout, sys.stderr)
        self._live = Live(
            get_renderable=self._draw,
            console=self._terminal,
            refresh_per_second=2,
            vertical_overflow="crop",
        )
        atexit.register(self.stop)
        self._live.start(refresh=True)
        self._move_handlers(originals)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Redraw with the metrics of a finished step."""
        self._progress.update(step, metrics)
        self._redraw()

    def phase(self, name: str) -> None:
        """Show what is being done beside the steps."""
        self._progress.phase = name
        self._redraw()

    def message(self, text: str) -> None:
        """Print a line above the panel."""
        self._terminal.print(text, markup=False)

    def validation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the result in the panel."""
        self._progress.validation(step, metrics)
        self._redraw()

    def finish(self, summary: RunSummary) -> None:
        """Leave the panel where it is and print the summary below it."""
        self._progress.phase = ""
        self.stop()
        self._terminal.print(
            draw_summary(summary, self._terminal.width, self._unicode())
        )
        for line in path_lines(summary):
            # Outside the panel and not wrapped: a path is there to be copied.
            self._terminal.print(line, soft_wrap=True)

    def stop(self) -> None:
        """Close the panel; its last state stays on the screen, the cursor is back."""
        live, self._live = self._live, None
        if live is None:
            return
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved = []
        live.stop()
        atexit.unregister(self.stop)

    def _draw(self) -> RenderableType:
        return draw_progress(self._progress, self._terminal.width, self._unicode())

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _unicode(self) -> bool:
        return self._terminal.encoding.lower().startswith("utf")

    def _move_handlers(self, originals: tuple[TextIO, TextIO]) -> None:
        """Point handlers that hold the terminal's streams at the panel's proxies."""
        loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
        for logger in loggers:
            for handler in getattr(logger, "handlers", ()):
                if type(handler) is not logging.StreamHandler:
                    continue
                for original, proxy in zip(
                    originals, (sys.stdout, sys.stderr), strict=True
                ):
                    if handler.stream is original and proxy is not original:
                        self._moved.append((handler, original))
                        handler.setStream(proxy)
                        break
