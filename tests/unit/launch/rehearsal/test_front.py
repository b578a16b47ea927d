"""Tests of the table of stages; what fills it is rehearsed in functional tests."""

from __future__ import annotations

import pytest

from nemo_rl.launch.__main__ import main
from nemo_rl.launch.rehearsal import front
from nemo_rl.launch.rehearsal.stages import NAMES

UP_TO_DATA = [
    {"on": "config"},
    {"done": "config", "seconds": 0.12, "detail": "grpo, 2 nodes x 8 GPUs tp4"},
    *({"done": name, "seconds": 1.0, "detail": ""} for name in NAMES[1:3]),
    {"differs": ["2 steps of 4 sequences"]},
    {"on": "tokenizer"},
    {"on": "data"},
]


def test_a_failed_stage_ends_the_table():
    said = [*UP_TO_DATA, {"failed": "data", "text": "row 3 has no prompt", "code": 2}]
    outcome = front.collect(iter(said), NAMES)
    verdicts = {row[0]: row[1] for row in outcome.rows}
    assert list(verdicts) == list(NAMES)
    assert verdicts["tokenizer"] == front.OK
    assert verdicts["data"] == front.FAILED
    assert verdicts["environment"] == front.LEFT
    assert (outcome.code, outcome.error) == (2, "row 3 has no prompt")
    text = front.text_of(outcome, 12.3, width=60)
    assert "data         FAILED            see below" in text
    assert "the rehearsal failed, in 12 s" in text
    assert max(map(len, text.splitlines())) <= 60


def test_a_program_that_ends_without_a_word_failed_where_it_was():
    outcome = front.collect(iter(UP_TO_DATA), NAMES)
    assert ("data", front.FAILED, None, "see below") in outcome.rows


def test_how_a_silent_program_ended(tmp_path):
    log = tmp_path / front.LOG
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    killed = front._unexplained(-9, log)
    assert "SIGKILL: is this machine out of memory?" in killed
    assert "line 99" in killed
    assert "line 84" not in killed


def test_large_files_of_a_failed_rehearsal_are_removed(tmp_path):
    for name in ("model-0", "checkpoints", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / front.LOG).write_text("")
    front._keep_little(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", front.LOG]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rehearse", "--chain", "2"], "--rehearse plays one run"),
        (["--rehearse", "--sweep", "grpo.seed=1,2"], "--rehearse plays one run"),
        (["--rehearse", "--run-dir", "somewhere"], "--rehearse plays one run"),
        (["--stand-in", "x"], "--stand-in x is for --rehearse"),
        (["--rehearse", "grpo.sed=1"], "grpo.sed is not a field"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_2(arguments, message, capsys):
    assert main(["grpo_llama8b", *arguments]) == 2
    assert message in capsys.readouterr().err
