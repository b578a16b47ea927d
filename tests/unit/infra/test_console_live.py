"""The live panel on a real pseudo-terminal: logs stay whole, Ctrl-C leaves it clean."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rich")

from nemo_rl.infra.console import RunSummary  # noqa: E402
from nemo_rl.infra.console_live import RichConsole  # noqa: E402

PROGRAM = """
import logging, signal, sys, time
# A test run in the background ignores Ctrl-C, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
other = logging.getLogger("other")
other.addHandler(logging.StreamHandler())
other.propagate = False
from nemo_rl.infra.console import RunSummary, make_console
from nemo_rl.infra.logging import show_messages
show_messages()
ours = logging.getLogger("nemo_rl.test")
console = make_console("auto")
print("console:", type(console).__name__)
console.start("title of the run", 4, {"workers": 1})
try:
    for step in range(1, 5):
        console.update(step, {"reward": step / 4})
        print(f"printed {step}")
        ours.info("ours %d", step)
        other.warning("other %d", step)
        console.message(f"message [{step}]")
        time.sleep(float(sys.argv[1]))
    console.finish(RunSummary(steps=4, after=1.0, paths={"logs": "a/b"}))
except KeyboardInterrupt:
    pass
finally:
    console.stop()
other.warning("handler is back")
print("the end")
"""

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def run_on_terminal(pause: str, interrupt_after: str | None = None) -> str:
    """Run PROGRAM on a pseudo-terminal of 80 columns; returns all it wrote."""
    root = Path(__file__).parents[3]
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR",)}
    environment |= {
        "PYTHONPATH": str(root),
        "TERM": "xterm-256color",
        "COLUMNS": "80",
        "LINES": "40",
        "PYTHONIOENCODING": "utf-8",
    }
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, pause],
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment,
        close_fds=True,
    )
    os.close(side)
    written = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not chunk:
            break
        written += chunk
        if interrupt_after and interrupt_after.encode() in written:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    os.close(main)
    assert process.wait(timeout=30) == 0, written.decode(errors="replace")
    return written.decode()


def lines_of(text: str) -> list[str]:
    """What is on each line, without control sequences."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.strip() for line in re.split(r"[\r\n]+", plain)]


def test_prints_and_logs_are_whole_lines_above_the_panel():
    text = run_on_terminal("0.05")
    lines = lines_of(text)
    assert "console: RichConsole" in lines
    for step in range(1, 5):
        assert f"printed {step}" in lines
        assert f"other {step}" in lines
        assert f"message [{step}]" in lines
        assert any(re.fullmatch(rf"[\d:]+ INFO ours {step}", line) for line in lines)
    assert any("step 4/4" in line for line in lines)
    assert "logs  a/b" in lines
    assert lines[-3:-1] == ["handler is back", "the end"]
    assert text.rfind(SHOW_CURSOR) > text.rfind(HIDE_CURSOR) >= 0


def test_ctrl_c_gives_the_cursor_and_the_handlers_back():
    text = run_on_terminal("30", interrupt_after="message [1]")
    assert text.rfind(SHOW_CURSOR) > text.rfind(HIDE_CURSOR) >= 0
    assert lines_of(text)[-3:-1] == ["handler is back", "the end"]


class Screen(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_in_this_process_streams_and_handlers_are_restored(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    streams = sys.stdout, sys.stderr
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)
    console = RichConsole(screen, 100)
    try:
        console.update(1, {"reward": 0.5})
        console.start("title", 3, {"a": 1})
        assert handler.stream is not streams[1]
        logger.warning("through the panel")
        console.phase("training")
        console.validation(1, {"accuracy": 0.5})
        console.start("another run", 5, {})
        console.update(2, {"reward": 0.75})
    finally:
        console.finish(RunSummary(steps=2, before=0.1, after=0.5, paths={"x": "y"}))
        logger.removeHandler(handler)
    console.stop()
    assert (sys.stdout, sys.stderr) == streams and handler.stream is streams[1]
    text = "\n".join(lines_of(screen.getvalue()))
    for part in ("through the panel", "training", "step 2/5", "0.7500", "x  y"):
        assert part in text, part
