"""The live panel on a real pseudo-terminal: logs stay whole, Ctrl-C leaves it clean."""

from __future__ import annotations

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

PROGRAM = """
import logging, sys, time
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
