"""The panels fit their width, hold every number, and treat text as text."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("rich")

from rich.cells import cell_len
from rich.console import Console

from nemo_rl.infra.console_view import draw_progress, draw_summary, path_lines
from nemo_rl.infra.progress import Progress, RunSummary, SampleChange


def text_of(renderable, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(renderable)
    return console.export_text()


def state() -> Progress:
    now = [0.0]
    progress = Progress(
        "nemo_rl  GRPO  some-model", 40, {"workers": "2 CPU"}, clock=lambda: now[0]
    )
    progress.validation(0, {"accuracy": 0.125})
    for step in range(1, 31):
        now[0] += 20.0
        progress.update(
            step,
            {
                "reward": step / 40,
                "response_length": 9.3,
                "kl": 0.0123,
                "loss": -0.0031,
                "grad_norm": 0.8,
                "tokens_per_s": 1204,
            },
        )
    progress.validation(30, {"accuracy": 0.5})
    progress.phase = "generating"
    return progress


SUMMARY = RunSummary(
    steps=40,
    elapsed_s=800,
    before=0.125,
    after=0.9,
    samples=[
        SampleChange("[bold]5 + 2 =[/bold]", "wrong " * 100, "7", "7", 0.0, 1.0),
        SampleChange("八 - 三 =", "五", "5", "5", 0.0, 1.0),
    ],
    paths={"checkpoint": "/a/" + "long/" * 40, "nothing": None},
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_panels_are_rectangles_within_the_width(width, unicode):
    for panel in (
        draw_progress(state(), width, unicode),
        draw_summary(SUMMARY, width, unicode),
    ):
        lines = text_of(panel, width).splitlines()
        assert {cell_len(line) for line in lines} == {min(width, 120)}


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_in_the_live_panel(width):
    text = text_of(draw_progress(state(), width), width)
    for part in (
        "step 30/40",
        "75%",
        "elapsed 10:00",
        "left 3:20",
        "generating",
        "0.7500",
        "▁",
        "█",
        "response length",
        "KL",
        "0.0123",
        "-0.0031",
        "grad norm",
        "1,204",
        "accuracy 0.5000 at step 30",
        "was 0.1250 at step 0",
        "workers 2 CPU",
    ):
        assert part in text, part


def test_an_empty_state_can_be_drawn():
    text = text_of(draw_progress(Progress("t", None), 80), 80)
    assert "step 0/?" in text and "left -" in text


def test_ascii_stays_ascii():
    plain = RunSummary(steps=1, after=0.5, samples=[SampleChange("a", "b", "c")])
    text = text_of(draw_progress(state(), 80, False), 80)
    assert (text + text_of(draw_summary(plain, 80, False), 80)).isascii()


def test_summary_shows_both_answers_and_no_markup_is_read():
    text = text_of(draw_summary(SUMMARY, 120), 120)
    for part in (
        "completed",
        "40 steps in 13:20",
        "0.1250",
        "0.9000",
        "✗ wrong",
        "✓ 7",
    ):
        assert part in text, part
    assert "[bold]5 + 2 =[/bold]" in text


def test_paths_are_whole_lines():
    (line,) = path_lines(SUMMARY)
    assert line.plain == "  checkpoint  /a/" + "long/" * 40
