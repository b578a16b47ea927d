"""Which console is chosen, and what the plain one writes."""

from __future__ import annotations

import errno
import io

import pytest

from nemo_rl.infra.console import (
    OffConsole,
    PlainConsole,
    RunSummary,
    SampleChange,
    make_console,
)
from nemo_rl.utils.exceptions import ConfigurationError

SUMMARY = RunSummary(
    status="completed",
    steps=3,
    elapsed_s=61,
    before=0.25,
    after=0.75,
    samples=[SampleChange("1 + 1 =", "three\nor so", "2", answer="2")],
    paths={"checkpoint": "results/step_000003", "model": None},
)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_auto_is_plain_in_a_file_and_live_on_a_terminal(monkeypatch):
    pytest.importorskip("rich")
    assert isinstance(make_console(stream=io.StringIO()), PlainConsole)
    monkeypatch.setenv("TERM", "xterm-256color")
    live = make_console(stream=Terminal())
    assert type(live).__name__ == "RichConsole"
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_console(stream=Terminal()), PlainConsole)


def test_modes():
    assert isinstance(make_console("off"), OffConsole)
    assert isinstance(make_console("plain", stream=Terminal()), PlainConsole)
    with pytest.raises(ConfigurationError, match="Choose auto, rich, plain or off"):
        make_console("fancy")


def test_off_writes_nothing(capsys):
    console = make_console("off")
    run(console)
    assert capsys.readouterr() == ("", "")


def run(console):
    console.start("GRPO tiny", 3, {"workers": 2})
    console.validation(0, {"accuracy": 0.25})
    console.phase("generating")
    console.update(1, {"reward": 0.5, "loss": -0.1, "tokens_per_s": 1234.5})
    console.message("checkpoint written")
    console.validation(1, {"accuracy": 0.75})
    console.finish(SUMMARY)
    console.stop()
    console.stop()


def test_plain_writes_one_line_per_event():
    stream = io.StringIO()
    run(make_console("plain", stream=stream))
    lines = stream.getvalue().splitlines()
    assert lines[:3] == [
        "GRPO tiny",
        "  workers: 2",
        "validation at step 0: accuracy 0.2500",
    ]
    assert lines[3].startswith(
        "step 1/3 | reward 0.5000 | loss -0.1000 | tokens/s 1,234 | "
    )
    assert lines[4:] == [
        "checkpoint written",
        "validation at step 1: accuracy 0.7500 (step 0: 0.2500)",
        "completed: 3 steps in 1:01",
        "accuracy: 0.2500 -> 0.7500",
        "  prompt: 1 + 1 =",
        "    answer: 2",
        "    before: three or so",
        "    after:  2",
        "checkpoint: results/step_000003",
    ]
    assert "\x1b" not in stream.getvalue()


def test_plain_survives_an_ascii_log():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    make_console("plain", stream=stream).message("5 → 7")
    assert raw.getvalue() == b"5 ? 7\n"


def test_plain_survives_a_full_disk_and_a_closed_pipe():
    class Broken(io.StringIO):
        def __init__(self, number):
            super().__init__()
            self.number = number
            self.tried = 0

        def write(self, text):
            self.tried += 1
            raise OSError(self.number, "cannot write")

    for number in (errno.ENOSPC, errno.EPIPE):
        stream = Broken(number)
        run(make_console("plain", stream=stream))
        assert stream.tried > 5


def test_plain_follows_a_replaced_stdout(capsys):
    make_console("plain").message("hello")
    assert capsys.readouterr().out == "hello\n"
